"""The paper's model, and SAM's decoder: attention, routing, blocks, trunk, the encoder, the classifier, their sizes.

May use `fast`.
"""
