"""Weights of a checkpoint file, put into a model that a factory built."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sparvar.errors import OptionError, message

WRAPPERS = ("state_dict", "model", "module", "ema")
"""Names under which training scripts keep the weights beside their optimiser and step."""
SHOWN = 3


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """Name to tensor of a ``.safetensors``, ``.pt`` or ``.pth`` file, one level of `WRAPPERS` taken off.

    Nothing in the file is run: only tensors and plain containers are read. Tensors may stay on disk until they are
    used.

    Raises:
        OptionError: the file cannot be read, is damaged, holds pickled code, or holds no weights or several sets.
    """
    subject = f"--checkpoint {path}"
    readers: dict[str, Callable[[Path], Any]] = {".safetensors": _safetensors, ".pt": _pickled, ".pth": _pickled}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        must = f"end in {', '.join(readers)}"
        raise OptionError(message(subject, must, repr(path.suffix), "save the model's state_dict in one of them"))
    try:
        with path.open("rb"):
            pass
        content = reader(path)
    except OSError as error:
        raise OptionError(message(subject, "be a readable file", error.strerror or str(error))) from error
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code is None:
            raise _damaged(subject, error) from error
        remedy = "in a process that trusts it, load it and save model.state_dict() alone"
        raise OptionError(
            message(subject, "hold tensors only, since pickled code could do anything", code.group(1), remedy)
        ) from error
    except Exception as error:  # readers of arbitrary bytes fail in any way, IndexError in torch's unpickler included
        raise _damaged(subject, error) from error
    return _weights(subject, content)


def _damaged(subject: str, error: Exception) -> OptionError:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return OptionError(message(subject, "be a whole checkpoint", f"one that cannot be read ({first})", "copy it again"))


def _safetensors(path: Path) -> Any:
    return load_file(path, device="cpu")


def _pickled(path: Path) -> Any:
    # Only zip archives, which torch writes since 1.6, can be mapped into memory.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _weights(subject: str, content: Any) -> dict[str, Tensor]:
    must = f"hold a state dict, or one under {', '.join(WRAPPERS)}"
    if not isinstance(content, Mapping):
        raise OptionError(message(subject, must, type(content).__name__, "save model.state_dict()"))
    inside = [name for name in WRAPPERS if isinstance(content.get(name), Mapping)]
    if len(inside) > 1:
        raise OptionError(message(subject, must, f"{' and '.join(inside)}", "save the one that is meant by itself"))
    weights = content[inside[0]] if inside else content
    strange = [
        str(name) for name, value in weights.items() if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if strange or not weights:
        got = f"{len(strange)} entries that are no tensors ({_first(strange)})" if strange else "nothing"
        raise OptionError(message(subject, must, got, "save model.state_dict()"))
    return dict(weights)


def apply_checkpoint(model: nn.Module, path: Path) -> None:
    """Load a checkpoint into a model, every name and shape the same; types become the model's.

    Raises:
        OptionError: see `load_checkpoint`; or names or shapes differ, and then the model is as it was.
    """
    given = load_checkpoint(path)
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    shapes = [
        f"{name} {list(given[name].shape)} for {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    counts = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    differences = [f"{len(names)} {what} ({_first(names)})" for what, names in counts if names]
    if differences:
        raise OptionError(
            message(
                f"--checkpoint {path}",
                f"hold the {len(wanted)} tensors of {type(model).__name__}",
                f"{len(given)}: " + ", ".join(differences),
                _remedy(wanted, given),
            )
        )
    try:
        model.load_state_dict(given, strict=True)
    except RuntimeError as error:
        raise OptionError(
            message(f"--checkpoint {path}", f"fit {type(model).__name__}", str(error).splitlines()[-1].strip())
        ) from error


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _remedy(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """What to do, by the commonest cause: a prefix that a wrapper put before every name."""
    prefixes = {name.partition(".")[0] for name in given}
    if len(prefixes) == 1:
        prefix = f"{prefixes.pop()}."
        if {name.removeprefix(prefix) for name in given} & set(wanted):
            return f"its names begin with {prefix!r}, which a wrapper adds: save the state dict of what it wraps"
    if not set(wanted) & set(given):
        return "no name agrees: it belongs to another model"
    return "let MODEL build the model with the settings of this checkpoint"
