"""What Dynamo needs to be told to capture published models as one graph per site."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from torch._dynamo.variables import ConstantVariable
from torch._dynamo.variables.misc import NumpyVariable

from sparvar.runtime.context import active


def fold_numpy() -> None:
    """Make NumPy functions of Python integers give Python integers while a site is traced.

    Infinity sums the sizes of earlier scales with ``np.sum`` and slices with the result. Dynamo makes a tensor of it
    and cannot slice with that; the integers are constants of the trace, so their sum is one, too. Outside of sites
    nothing changes. A torch whose Dynamo is built otherwise is left alone, and says itself what it cannot trace.
    """
    original = NumpyVariable.call_function
    if getattr(original, "_sparvar", False) or list(inspect.signature(original).parameters)[2:4] != ["args", "kwargs"]:
        return

    def call_function(self: Any, tx: Any, args: Any, kwargs: Any) -> Any:
        if active() and not kwargs and all(arg.is_python_constant() for arg in args):
            given = [arg.as_python_constant() for arg in args]
            if all(_integers(value) for value in given):
                value = self.value(*given)
                if isinstance(value, np.integer):
                    return ConstantVariable.create(int(value))
        return original(self, tx, args, kwargs)

    call_function._sparvar = True  # type: ignore[attr-defined]
    NumpyVariable.call_function = call_function  # type: ignore[method-assign]


def _integers(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_integers(part) for part in value)
    return isinstance(value, int)
