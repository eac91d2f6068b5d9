"""Training from masks, distillation, and classification: one loop, its batches, losses and objectives.

May use `evaluation` and every room below it.
"""
