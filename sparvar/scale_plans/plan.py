"""`Plan`: what runs at every scale and layer, as a value that can be read, edited, saved and compared."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from pydantic_core import PydanticSerializationError, to_jsonable_python

from sparvar.errors import PlanError, PlanWarning, message
from sparvar.files import write_whole
from sparvar.scale_plans import codec, geometry
from sparvar.scale_plans.check.plan_fields import contradictions
from sparvar.scale_plans.data import PlanFields, as_json
from sparvar.scale_plans.show import table
from sparvar.scale_plans.static_plans import chosen_changes
from sparvar.scale_plans.work import attention_share


class Plan(PlanFields):
    """A plan: pure data, immutable. ``load``, ``loads`` and ``replace`` accept only plans without contradictions.

    The constructor checks types only; `check` lists what else is wrong.
    """

    @classmethod
    def loads(cls, text: str, *, strict_digest: bool = False, source: str = "plan") -> Plan:
        """Read a plan from JSON text; ``source`` names it in messages.

        Raises `PlanError` with every problem at once. A digest that does not match the content means a hand edit:
        the plan works, with a `PlanWarning` and its own digest; with ``strict_digest`` it is an error.
        """
        plan, stated = codec.read(text, cls, source)
        if stated is not None and stated != plan.digest:
            remedy = "remove the digest, or run `sparvar inspect --rehash` on the file, to accept the edit"
            stale = message("digest", f"match the content, {plan.digest}", stated, f"edited by hand? {remedy}")
            if strict_digest:
                raise PlanError(stale, source)
            warnings.warn(f"{source}: {stale}; going on with the edited content", PlanWarning, stacklevel=2)
        return plan

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, strict_digest: bool = False) -> Plan:
        """Read a plan file; see `loads`. Raises `PlanError` also where the file cannot be read."""
        source = os.fspath(path)
        try:
            text = Path(path).read_bytes().decode("utf-8-sig")
        except OSError as error:
            raise PlanError(message("file", "be readable", error.strerror or str(error)), source) from error
        except UnicodeDecodeError as error:
            must = "be UTF-8 text"
            raise PlanError(
                message("file", must, f"byte {error.start} that is not", "is it cut off?"), source
            ) from error
        return cls.loads(text, strict_digest=strict_digest, source=source)

    def dumps(self) -> str:
        """The plan as JSON text, byte for byte the same for the same plan. Raises `PlanError` on contradictions."""
        self.require()
        return codec.write(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan's file, whole or not at all. Raises `PlanError` or `OutputError`."""
        write_whole(Path(path), self.dumps().encode())

    @property
    def digest(self) -> str:
        """``sha256:...`` over everything that changes the computation: not name, measurements, provenance.

        Computed at each use, so that it is never out of date: keep it where speed matters.
        """
        return codec.digest(self)

    def check(self) -> list[str]:
        """Every contradiction in the plan, one line each; empty when there is none."""
        return contradictions(self)

    def require(self) -> Plan:
        """The plan itself, or `PlanError` with every contradiction."""
        problems = self.check()
        if problems:
            raise PlanError(problems, f"plan {self.name!r}")
        return self

    def replace(self, **changes: Any) -> Plan:
        """A changed copy, e.g. ``plan.replace(sink_scales=4)``. Raises `PlanError` with every problem of the result."""
        try:
            raw = {**as_json(self), **to_jsonable_python(changes)}
        except PydanticSerializationError as error:
            raise PlanError(f"replace: {error}", f"plan {self.name!r}") from error
        return codec.build(raw, type(self), f"plan {self.name!r}")

    def static_plan(self, skip: int, conditional: int) -> Plan:
        """The static plan that a decision of ``adapt`` goes on with; see `decide`. Raises `PlanError` where none is."""
        return self.replace(**chosen_changes(self, skip, conditional))

    def cost(self) -> float:
        """Estimated share of dense attention's multiply-adds that the plan spends; see `work.attention_share`."""
        return attention_share(self)

    def kept_share(self, scale: int, policy: str) -> float | None:
        """Share of (query, key) pairs that a policy computes at a scale; None where it is dense there."""
        return geometry.kept_share(self, scale, policy)

    def __str__(self) -> str:
        return table.render(self, self.digest)

    def __hash__(self) -> int:
        return hash(self.digest)
