"""The demo: a page on which clicks and boxes become masks, and on which one sees what the encoder spent.

May use every room but `cli`.
"""
