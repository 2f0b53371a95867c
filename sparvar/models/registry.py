"""Which family a model is of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
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
        settings: fields of the family's `Family.settings_class`, which names them.

    Raises:
        CaptureError: no family has such a model, or the model lacks what its family needs.
        OptionError: a setting is unknown, missing, or has a wrong value.
    """
    family: Any = _class_of(model)
    return family(model, images, _settings(family, settings))


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


def _settings(family: type[Family], given: Mapping[str, Any]) -> Any:
    known = fields(family.settings_class)
    names = [field.name for field in known]
    wrong = [name for name in given if name not in names]
    if wrong:
        must = f"be among {', '.join(names)}" if names else "be left out"
        raise OptionError(message(f"settings of the {family.name} family", must, ", ".join(wrong)))
    required = [field.name for field in known if field.default is MISSING]
    absent = [name for name in required if name not in given]
    if absent:
        raise OptionError(message(f"settings of the {family.name} family", f"give {', '.join(absent)}", "nothing"))
    return family.settings_class(**given)
