"""Files of weights on the Hugging Face Hub, by names such as "hf-hub:OWNER/NAME"."""

from pathlib import Path
from typing import Any

from .errors import WeightsError

PREFIX = "hf-hub:"
WEIGHTS = "model.safetensors"  # as the Hub's libraries name it


def local(path: Path) -> Path:
    """`path` itself, or where the weights lie here that "hf-hub:OWNER/NAME" names, downloaded if need be.

    Raises:
        WeightsError: as `download` does.
    """
    name = str(path)
    return download(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else path


def download(name: str, **options: Any) -> Path:
    """The weights of the Hub's repository `name`, "OWNER/NAME", in its cache here; `options` as of hf_hub_download.

    Raises:
        WeightsError: huggingface_hub is not installed, there is no such repository or file, or no connection.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ModuleNotFoundError as error:
        raise WeightsError(f"{PREFIX}{name} needs huggingface_hub; pip install 'gala-cuda[hub]'") from error
    try:
        return Path(hf_hub_download(name, WEIGHTS, **options))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{PREFIX}{name} cannot be had: {reason}") from error
