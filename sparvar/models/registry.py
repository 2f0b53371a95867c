"""Which family a model is of."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from sparvar.errors import CaptureError, OptionError, message
from sparvar.models.base import Call, Family
from sparvar.models.flexvar import FlexVarFamily
from sparvar.models.hart import HartFamily
from sparvar.models.infinity import InfinityFamily
from sparvar.models.landscape import LandscapeFamily
from sparvar.models.var import VarFamily

FAMILIES: tuple[type[Family], ...] = (LandscapeFamily, VarFamily, FlexVarFamily, InfinityFamily, HartFamily)


def family_of(model: nn.Module, images: int = 1, **settings: Any) -> Family:
    """The family of a model, recognised by its class's name (or that of a class it derives from).

    Args:
        model: the model, as its user constructs it.
        images: images of one run.
        settings: what the family fixes when it is exported; each class's docstring names them.

    Raises:
        CaptureError: no family has such a model, or the model lacks what its family needs.
        OptionError: a setting is unknown, missing, or has a wrong value.
    """
    family = _class_of(model)
    _check_settings(family, settings)
    return family(model, images, **settings)


def call_of(model: nn.Module, arguments: Mapping[str, Any]) -> Call:
    """A call of a model's own generation method, ``arguments`` by name with defaults, as a run of its family.

    Raises:
        CaptureError: no family has such a model, or the model lacks what its family needs.
        OptionError: an argument has a value that the family cannot draw.
    """
    return _class_of(model).of_call(model, arguments)


def _class_of(model: nn.Module) -> type[Family]:
    names = [base.__name__ for base in type(model).__mro__]
    for family in FAMILIES:
        if family.model_class in names:
            return family
    known = ", ".join(f"{family.name} ({family.model_class})" for family in FAMILIES)
    raise CaptureError(
        message("model", f"be of a known family: {known}", type(model).__name__, "subclass Family for another model")
    )


def _check_settings(family: type[Family], settings: dict[str, Any]) -> None:
    parameters = list(inspect.signature(family).parameters.values())[2:]
    known = [parameter.name for parameter in parameters]
    required = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
    wrong = [name for name in settings if name not in known]
    if wrong:
        must = f"be among {', '.join(known)}" if known else "be left out"
        raise OptionError(message(f"settings of the {family.name} family", must, ", ".join(wrong)))
    absent = [name for name in required if name not in settings]
    if absent:
        raise OptionError(message(f"settings of the {family.name} family", f"give {', '.join(absent)}", "nothing"))
