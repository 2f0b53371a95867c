"""The plan that calibration starts from."""

from __future__ import annotations

from sparvar.compiler.find_sites import find_candidates
from sparvar.errors import OptionError, message
from sparvar.models.fingerprint import fingerprint
from sparvar.models.subject import Subject
from sparvar.scale_plans import ModelInfo, Plan, dense_plan


def base_plan(subject: Subject) -> Plan:
    """The all-dense plan that every candidate is a change of. Raises `OptionError` where no module attends."""
    names = [candidate.name for candidate in find_candidates(subject.model) if candidate.problem is None]
    if not names:
        must = "hold modules whose forward calls attention"
        raise OptionError(message(f"model {type(subject.model).__name__}", must, "none among its modules"))
    dtype = str(next(subject.model.parameters()).dtype).removeprefix("torch.")
    return dense_plan(
        subject.schedule,
        ModelInfo(
            sites=names,
            heads=subject.heads,
            head_dim=subject.head_dim,
            dtype=dtype,
            family=subject.name,
            fingerprint=fingerprint(subject.model),
        ),
        prefix=subject.prefix,
        tile=subject.tile,
        name=subject.name,
    )
