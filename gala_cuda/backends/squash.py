"""The squashes, under the codes that C++, CUDA and Triton give them too."""

import enum
import math


class Squash(enum.IntEnum):
    """The function that squashes the attention, under the code that `csrc/gala.h` gives it too."""

    TANH = 0
    SIGMOID = 1


SQUASHES = {squash.name.lower(): squash for squash in Squash}  # by the names that users give them
HALFWAY = {Squash.TANH: math.atanh(0.5), Squash.SIGMOID: 0.0}  # where each is 1/2
