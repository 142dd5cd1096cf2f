"""Networks by name, and the files of weights that they are built from."""
