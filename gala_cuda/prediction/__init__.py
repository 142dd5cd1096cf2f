"""Predictions of a network for many pictures, written to a table."""
