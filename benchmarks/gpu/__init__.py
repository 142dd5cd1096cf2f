"""The GPU suite: one command that measures everything on one NVIDIA GPU, `make gpu`.

It works in parts, the most important first. Each part keeps a JSON file of its steps that is written anew after every
step, so that a run that was cut off continues where it stopped.
"""
