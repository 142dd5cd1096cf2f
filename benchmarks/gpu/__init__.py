"""The GPU suite: one command that measures everything on one NVIDIA GPU, ``make gpu``.

It works in parts, in order of importance. Each part keeps a JSON file of its steps that is written anew after every
step, so that a run which was cut off goes on where it stood.
"""
