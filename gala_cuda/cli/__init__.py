"""The command ``gala-cuda``, a file for each of its commands."""
