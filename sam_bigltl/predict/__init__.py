"""From photographs and prompts to masks: SAM's predictor and everything mode, embeddings, whole folders, ONNX.

May use `convert`, `modeling`, `fast` and `data`.
"""
