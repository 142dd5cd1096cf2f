"""Images to train and test on: where they lie, how they are read, in which order they come."""
