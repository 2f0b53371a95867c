"""Definition and registration of ops in the torch namespace `sparvar`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["NAMESPACE", "define"]

NAMESPACE = "sparvar"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


def define(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Define the op `schema` (name and arguments without namespace) and return its callable overload.

    `run` serves every real device; `fake` serves meta and fake tensors. `Library.impl` costs a few microseconds
    a call where `torch.library.custom_op` costs some tens.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=(torch.Tag.needs_exact_strides,))
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    overload: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return overload
