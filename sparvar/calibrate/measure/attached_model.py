"""Which plan a model runs: attached and detached as measurements need it."""

from __future__ import annotations

import torch
from torch import nn

from sparvar.backend import attachment_of, compile, detach
from sparvar.kernels import trim_memory
from sparvar.runtime.attachment import Attachment
from sparvar.scale_plans import Plan


class AttachedModel:
    """A model, and the plan that it runs at the moment.

    Attributes:
        model: the user's.
        inner: compiler of plans that are timed, "auto" until `apply_effort` has chosen it.
    """

    def __init__(self, model: nn.Module, inner: str) -> None:
        self.model, self.inner = model, inner
        self._running: tuple[str, str] | None = None
        self._compiled: set[tuple[str, int]] = set()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def attachment(self) -> Attachment:
        found = attachment_of(self.model)
        assert found is not None
        return found

    def detach(self) -> None:
        """Let the model run its own code."""
        detach(self.model)
        trim_memory()
        self._running = None

    def attach(self, plan: Plan, inner: str = "") -> bool:
        """Let the model run a plan, compiled by ``inner`` or else the attribute; whether its next image compiles."""
        if self._running == (plan.digest, inner):
            return False
        trim_memory()  # what the plan before left: over dozens of plans holes would add up to more than a generation
        compile(self.model, plan, inner=inner or self.inner)
        self._running = plan.digest, inner
        if "eager" in (inner, self.inner):
            return False
        kinds = {
            (plan.kind(scale, layer), scale) for scale in range(1, plan.scales + 1) for layer in range(len(plan.layers))
        }
        known = kinds <= self._compiled
        self._compiled |= kinds
        return not known
