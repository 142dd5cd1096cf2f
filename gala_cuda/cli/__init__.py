"""The command `gala-cuda`. Each of its commands has a file here: its help text, its arguments and what it runs."""
