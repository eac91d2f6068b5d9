"""What things cost: latency in interleaved runs, counted products, memory, and exactness against SAM.

May use `predict`, `convert`, `modeling`, `fast` and `data`.
"""
