"""Trains networks by a recipe, tests them and exports them."""
