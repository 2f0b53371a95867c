"""The model that a command names: what its factory returns, as a subject of calibration or as a family."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparvar.errors import OptionError, message
from sparvar.models import Family, family_of
from sparvar.models.checkpoint import apply_checkpoint
from sparvar.models.subject import Subject, as_subject


def from_factory(text: str) -> Any:
    """What ``zoo:landscape`` or ``package.module:factory`` returns, called without arguments; a module there as it is.

    Raises:
        OptionError: there is no such module or factory, or it needs arguments.
    """
    place, _, name = text.partition(":")
    if not place or not name:
        must = "be zoo:landscape or package.module:factory"
        raise OptionError(message("MODEL", must, repr(text), "e.g. mypackage.models:build"))
    try:
        module = importlib.import_module("sparvar.zoo" if place == "zoo" else place)
    except ImportError as error:
        remedy = "install its package, or run in the folder that holds it"
        raise OptionError(message(f"MODEL {text}", "name a module that can be imported", error, remedy)) from error
    factory = getattr(module, name, None)
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        near = difflib.get_close_matches(name, vars(module), n=1)
        got = f"{place}, which has no callable named {name}"
        raise OptionError(message(f"MODEL {text}", "name a factory", got, f"did you mean {near[0]}" if near else ""))
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        remedy = "write a function that builds the model as you need it"
        raise OptionError(message(f"MODEL {text}", "be callable without arguments", error, remedy)) from error
    except ValueError:  # built into the interpreter, so it tells no signature
        pass
    with torch.random.fork_rng(devices=[]):
        return factory()


def load_subject(text: str, checkpoint: Path | None = None) -> Subject:
    """What MODEL names (see `from_factory`) as a subject of calibration.

    Args:
        text: place and name of the factory.
        checkpoint: file whose weights take the place of the factory's.

    Raises:
        OptionError: there is no such module or factory, it returned something else, or the checkpoint cannot be read
            or does not fit.
    """
    subject = as_subject(from_factory(text), text)
    if checkpoint is not None:
        apply_checkpoint(subject.model, checkpoint)
    return subject


def load_exportable(text: str, checkpoint: Path | None = None, images: int = 1, device: str = "cpu") -> Family:
    """What MODEL names (see `from_factory`) as a family.

    A factory returns the model, a `sparvar.calibrate.Subject`, or a `Family` where settings are needed.

    Args:
        text: place and name of the factory.
        checkpoint: file whose weights take the place of the factory's.
        images: of one run of the programs.
        device: ``cpu`` or ``cuda``, where the model is moved to.

    Raises:
        OptionError: there is no such device, module or factory, it returned something else, or the checkpoint does not
            fit.
        CaptureError: the model is of no known family.
    """
    given = from_factory(text)
    model = given.model if isinstance(given, Subject | Family) else given
    if not isinstance(model, nn.Module):
        must = "return a model, a Subject or a Family"
        raise OptionError(message(f"factory {text}", must, type(given).__name__))
    if checkpoint is not None:
        apply_checkpoint(model, checkpoint)
    _move(given.roots.values() if isinstance(given, Family) else [model], device)
    if not isinstance(given, Family):
        return family_of(model, images)
    if images not in (1, given.images):
        raise OptionError(message("--batch", f"be {given.images}, as the factory's family was made", images))
    return given


def _move(modules: Iterable[nn.Module], device: str) -> None:
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise OptionError(message("--device", "be cpu or cuda", device))
    if device != "cpu" and not torch.cuda.is_available():
        raise OptionError(message("--device", "be cpu: torch finds no CUDA device", device))
    for module in modules:
        module.to(device)
