"""Reads files of weights: safetensors, or torch.save by this package, torchvision, timm, Lightning and others.

No code in a file is run, and no class that it names is imported: torch's restricted reader reads it, and objects that
this does not know become empty placeholders.
"""

import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor

from . import hub_files
from .errors import WeightsError
from .file_kinds import HEAD, RETRY, is_safetensors, why_no_weights

# The entries in which trainings keep the weights; averaged ones first, for those are what was tested.
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "ema")
ENTRIES = (*AVERAGED, "state_dict", "model_state_dict", "model_state", "model", "params", "net", "network", "module",
           "weights")  # fmt: skip
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # of torch.compile, FSDP, checkpointing
_OF_TENSORS = re.compile(r"^torch\.(_utils|storage|\w*Storage)\b|^collections\.OrderedDict$")
PROTOCOL = 2  # of pickle, the one that torch.save writes
_COUNTER = "n_averaged"  # a buffer of torch.optim.swa_utils.AveragedModel, no weight
# What the readers raise for damaged files, found by damaging some.
_READER_ERRORS = (
    AssertionError, AttributeError, EOFError, LookupError, MemoryError, OverflowError, RuntimeError, TypeError,
    ValueError, pickle.UnpicklingError, safetensors.SafetensorError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


class WeightsFile(NamedTuple):
    """Weights on the CPU by their plain names, the file's metadata, and the entry that holds the weights, if any."""

    tensors: dict[str, Tensor]
    metadata: Mapping[str, str]
    entry: str | None


class _Placeholder:
    """Stands for an object of a class that is not imported; it keeps nothing."""

    name = ""  # of the class

    def __new__(cls, *_: Any, **__: Any) -> "_Placeholder":
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read(path: Path) -> WeightsFile:
    """The weights in a file, whatever it is called; "hf-hub:OWNER/NAME" is one on the Hugging Face Hub.

    Names lose what torch.compile, DDP, FSDP and averaging put before them.

    Raises:
        WeightsError: the file is missing, damaged, or holds something else; the message says what.
    """
    path = hub_files.local(path)
    try:
        problem = why_no_weights(path)
        if problem is not None:
            raise WeightsError(f"{path} cannot be read as weights: it is {problem}")
        with path.open("rb") as file:
            safe = is_safetensors(file.read(HEAD))
        return _safetensors(path) if safe else _pickled(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read as weights: {error.strerror or error}") from error


def _safetensors(path: Path) -> WeightsFile:
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return WeightsFile(_strip_wrappers(path, tensors), file.metadata() or {}, None)
    except WeightsError:
        raise
    except _READER_ERRORS as error:
        raise WeightsError(f"{path} cannot be read as weights: it is damaged or cut short; {RETRY}") from error


def _pickled(path: Path) -> WeightsFile:
    try:
        content = _unpickled(path)
        weights = _state_dict(content)  # a damaged dict may hold itself
    except WeightsError:
        raise
    except _READER_ERRORS as error:
        raise WeightsError(f"{path} cannot be read as weights: it is damaged or cut short; {RETRY}") from error
    if weights is None:
        raise WeightsError(f"{path} holds no state dict, but {_describe(content)}; expected torch.save of a state dict")
    entry, tensors = weights
    return WeightsFile(_strip_wrappers(path, tensors), {}, entry)


def _unpickled(path: Path) -> Any:
    """The content of a file of torch.save, with placeholders for objects of classes that torch does not know."""
    names, bare, protocol = _classes_named(path)
    try:
        return _with_placeholders(path, names, set())
    except pickle.UnpicklingError:
        pass
    try:  # configurations are often of subclasses of dict, which torch does not fill: they become plain dicts
        return _with_placeholders(path, names, bare)
    except pickle.UnpicklingError as error:
        others = ", ".join(sorted(name for name in names if not _OF_TENSORS.search(name)))
        if PROTOCOL < protocol <= pickle.HIGHEST_PROTOCOL:
            problem = f"it is written with pickle_protocol {protocol}; expected torch.save's own, {PROTOCOL}"
        elif others:
            problem = f"it holds objects of {others}, which are not loaded; expected model.state_dict() alone"
        else:
            raise
        raise WeightsError(f"{path} cannot be read as weights: {problem}") from error


def _with_placeholders(path: Path, names: set[str], dicts: set[str]) -> Any:
    """The content with objects of the classes ``dicts`` as dicts and of others in ``names`` as placeholders."""
    known: list[Any] = [
        (OrderedDict if name in dicts else type("Unread", (_Placeholder,), {"name": name}), name) for name in names
    ]
    with path.open("rb") as file, torch.serialization.safe_globals(known), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about the pickle's version
        return torch.load(file, map_location="cpu", weights_only=True)


def _classes_named(path: Path) -> tuple[set[str], set[str], int]:
    """(all classes and functions that a file of torch.save names, those called without arguments, pickle's version).

    Names of Python 2 are translated to those of Python 3.
    """
    names, bare, protocol = set[str](), set[str](), 0
    with path.open("rb") as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                (member,) = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
                pickles: list[Any] = [archive.read(member)]
        else:
            file.seek(0)
            pickles = [file] * 4  # one after the other: magic number, version, system, content
        for data in pickles:
            last = before = ""
            for operation, argument, _ in pickletools.genops(data):
                if operation.name == "GLOBAL":
                    module, _, name = str(argument).partition(" ")
                    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
                    names.add(f"{module}.{name}")
                    before, last = last, f"{module}.{name}"
                elif operation.name == "PROTO":
                    protocol = int(argument or 0)
                elif operation.name == "NEWOBJ" and last == "EMPTY_TUPLE":
                    bare.add(before)
                elif "PUT" not in operation.name:
                    before, last = last, operation.name
    return names, bare & names, protocol


def _state_dict(content: Any, entry: str | None = None) -> tuple[str | None, dict[str, Tensor]] | None:
    """(the entry that holds it, the state dict) in a training's file; anything in it but tensors is left out."""
    if not isinstance(content, dict):
        return None
    for name in ENTRIES:
        inner = _state_dict(content.get(name), name if entry is None else f"{entry}.{name}")
        if inner is not None:
            return inner
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    return (entry, tensors) if tensors else None


def _describe(content: Any) -> str:
    if isinstance(content, _Placeholder):
        return f"an object of the class {content.name}"
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    objects = {
        f"{name} of the class {value.name}" for name, value in content.items() if isinstance(value, _Placeholder)
    }
    return f"entries {', '.join(sorted(objects) or map(str, list(content)[:8]))}" if content else "an empty dict"


def _strip_wrappers(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` without the prefixes of wrappers in their names."""
    plain = dict[str, Tensor]()
    for name, tensor in tensors.items():
        parts = [part for part in name.split(".") if part not in _WRAPPERS]
        if parts[-1:] == [_COUNTER]:
            continue
        if (short := ".".join(parts)) in plain:
            raise WeightsError(f"{path} holds {short} twice, once as {name}")
        if tensor.is_quantized or tensor.is_meta or tensor.layout != torch.strided:
            kind = "quantized" if tensor.is_quantized else "without values" if tensor.is_meta else "sparse"
            raise WeightsError(f"{path} holds {name}, which is {kind}; expected plain tensors")
        plain[short] = tensor
    while plain and all(name.startswith("module.") for name in plain):
        plain = {name.removeprefix("module."): tensor for name, tensor in plain.items()}
    return plain
