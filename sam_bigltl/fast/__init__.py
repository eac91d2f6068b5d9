"""What `optimize()` does: C++ kernels, int8, number formats; and the devices that things run on.

Knows nothing of the model but the names of its layers, and uses no other room.
"""
