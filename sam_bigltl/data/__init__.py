"""From disk and to disk: files written whole, photographs, annotations in COCO format, labelled images, shards.

Knows no model, and uses no other room.
"""
