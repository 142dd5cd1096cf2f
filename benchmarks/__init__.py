"""Timings: of the operator, of training, of what parts of them cost, and of everything on a GPU."""
