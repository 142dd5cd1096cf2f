"""What can go wrong while networks and weights are opened."""

from ..errors import SettingError


class NetworkError(SettingError):
    """There is no such network, or it cannot have what is asked of it; ``name`` is the argument that says so."""

    def __init__(self, name: str, problem: str):
        super().__init__((name,), problem)


class WeightsError(SettingError):
    """A file of weights cannot be read, or its weights are another network's."""

    def __init__(self, problem: str):
        super().__init__(("weights",), problem)
