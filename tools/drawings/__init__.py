"""The documentation's drawings, made by `python -m tools.drawings`."""
