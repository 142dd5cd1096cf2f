"""Experiments with trained networks."""
