"""The images to train and test on: where they come from, how they are read, and in which order.

A *picture* is a file in a picture format, such as a JPEG; an *image* is the tensor that a network takes.
"""
