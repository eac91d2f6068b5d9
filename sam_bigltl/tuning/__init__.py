"""`tune`: the fastest setting of somebody's model that keeps its masks, measured on their photographs.

May use `training` and the rooms below it.
"""
