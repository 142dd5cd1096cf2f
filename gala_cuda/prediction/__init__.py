"""Predictions of a network for many pictures, written to a table."""

SUFFIXES = (".csv", ".jsonl", ".parquet")  # of the files that a table can be
