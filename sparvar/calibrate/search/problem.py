"""What a search chooses from, with everything that was measured of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sparvar.calibrate.candidates.candidate import Setting
from sparvar.calibrate.candidates.compression import Compression, compressed_cases
from sparvar.calibrate.candidates.reductions import Effects, with_reductions
from sparvar.calibrate.candidates.space import Space
from sparvar.calibrate.fit.predict import Sensitivity, Sites, cases
from sparvar.calibrate.measure.costs import CostTable
from sparvar.calibrate.measure.measured import Measured
from sparvar.calibrate.search.solver import Case
from sparvar.scale_plans import Plan


@dataclass(frozen=True)
class Problem:
    """Everything that the cases of the solver follow from.

    Attributes:
        base: the all-dense plan.
        space: which columns and windows there are.
        sites: what was observed of them.
        costs: seconds of a site.
        sensitivity: image MSE of errors of attention.
        effects: of leaving out tokens, rows and scales; None where none may be left out.
        compression: of the KV cache; None where it stays whole.
        dense: generations over whole caches, timed beside ``compression``.
        timed: seconds are of this machine; otherwise they are predicted for another and never corrected.
        screened: squared relative error of every setting, of which ``space`` has the best.
        costs_cached: ``costs`` were measured by an earlier calibration.
    """

    base: Plan
    space: Space
    sites: Sites
    costs: CostTable
    sensitivity: Sensitivity
    effects: Effects | None = None
    compression: Compression | None = None
    dense: Measured | None = None
    timed: bool = True
    screened: Mapping[Setting, float] = field(default_factory=dict)
    costs_cached: bool = False

    @property
    def start(self) -> Plan:
        """The plan that every choice is a change of: dense attention, over a compressed cache or a whole one."""
        return self.base if self.compression is None else self.compression.plan

    @property
    def start_mse(self) -> float:
        """Image MSE of `start`."""
        return 0.0 if self.compression is None else self.compression.measured.image_mse

    @property
    def start_seconds(self) -> float:
        """Seconds of an image under `start`."""
        if self.compression is None or self.dense is None:
            return self.costs.dense_seconds
        return self.compression.measured.median_seconds

    def cases(self, max_error: float | None) -> list[Case]:
        """The cases without candidates whose relative output error in a layer is above ``max_error``."""
        found = cases(self.base, self.space, self.sites, self.costs, self.sensitivity, max_error)
        if self.compression is not None:
            found = compressed_cases(found, self.compression, self.dense)
        return found if self.effects is None else with_reductions(found, self.effects.front(), self.effects)
