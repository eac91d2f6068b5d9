"""How long encoders take, in interleaved runs: ratios, memory, and the share of the machine's peak."""
