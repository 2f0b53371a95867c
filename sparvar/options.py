"""Options of the backend: frozen, and unknown names are refused with the valid ones listed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sparvar.errors import OptionError, message
from sparvar.scale_plans import Plan, PlanSet

PlanSource = Plan | PlanSet | Path | str | Sequence[Plan | Path | str]

INNER = ("inductor", "eager")
GRAINS = ("auto", "attention", "block")


@dataclass(frozen=True)
class Options:
    """What ``torch.compile(..., backend="sparvar", options={...})`` accepts.

    Attributes:
        plan: a :class:`Plan`, a path to its JSON, the name of a shipped plan, or ``"auto"``: the
            shipped plan whose fingerprint is the model's; or a list of these for
            several schedules (resolutions, aspect ratios), of which the model's call names one.
        inner: compiler of the rewritten graphs, ``"inductor"`` or ``"eager"``.
        strict: raise when a planned site cannot run sparse; otherwise warn and run it dense.
        grain: what is compiled around each self-attention: the module itself (``"attention"``), the
            block that holds it (``"block"``: norms, MLP and cross-attention are in the graph too, and text of another
            length then compiles anew), or ``"auto"``: the block where it holds exactly one attention, else the module.
        dump: folder for the graphs before and after every pass, numbered, or None.
    """

    plan: PlanSource = "auto"
    inner: str = "inductor"
    strict: bool = True
    grain: str = "auto"
    dump: Path | None = None

    def __post_init__(self) -> None:
        for name, valid in (("inner", INNER), ("grain", GRAINS)):
            if getattr(self, name) not in valid:
                raise OptionError(message(f"option {name}", f"be one of {', '.join(valid)}", repr(getattr(self, name))))
        if not isinstance(self.strict, bool):
            raise OptionError(message("option strict", "be True or False", repr(self.strict)))
        several = self.plan if isinstance(self.plan, list | tuple) else [self.plan]
        for plan in several:
            if not isinstance(plan, Plan | PlanSet | Path | str):
                must = "be a Plan, a path, a name, or a list of these"
                raise OptionError(message("option plan", must, type(plan).__name__))
        if self.dump is not None:
            object.__setattr__(self, "dump", Path(self.dump))

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> Options:
        """Options from a mapping of names to values.

        Raises:
            OptionError: a name is unknown or a value is not valid.
        """
        names = [field.name for field in fields(cls)]
        for name in given or {}:
            if name not in names:
                near = difflib.get_close_matches(str(name), names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else ""
                raise OptionError(message("option", f"be one of {', '.join(names)}", repr(name), hint))
        return cls(**dict(given or {}))
