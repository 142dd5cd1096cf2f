"""The reference trainer: recipe, loop, checkpoints, evaluation, export."""
