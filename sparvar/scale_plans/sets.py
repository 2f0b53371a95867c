"""`PlanSet`: plans of one model for several schedules (resolutions, aspect ratios), one of which runs a generation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sparvar.errors import PlanError, message
from sparvar.scale_plans.data import ModelInfo
from sparvar.scale_plans.plan import Plan

Schedule = tuple[tuple[int, int], ...]


def schedule_text(schedule: Schedule) -> str:
    """``13 scales, 1x1 to 64x64``."""
    (first_h, first_w), (last_h, last_w) = schedule[0], schedule[-1]
    return f"{len(schedule)} scales, {first_h}x{first_w} to {last_h}x{last_w}"


@dataclass(frozen=True)
class PlanSet:
    """Plans for the same sites, each for a schedule of its own.

    Attributes:
        name: what messages call it.
        plans: the plans that are written out; the first is the one of models that never name a schedule.
        rule: makes the plan of any other schedule, or None: then only ``plans`` run.
    """

    name: str
    plans: tuple[Plan, ...]
    rule: Callable[[Schedule], Plan] | None = None

    @classmethod
    def of(cls, plans: Iterable[Plan], rule: Callable[[Schedule], Plan] | None = None, name: str = "") -> PlanSet:
        """A set of checked plans.

        Raises:
            PlanError: there is none, two are for one schedule, or they name other sites or another model.
        """
        given = tuple(plan.require() for plan in plans)
        if not given:
            raise PlanError(message("plans", "hold at least one plan", "none"), name or "plan set")
        problems = []
        seen: dict[tuple[Schedule, int], str] = {}
        for plan in given:
            if plan.model != given[0].model:
                problems.append(
                    f"plan {plan.name!r} is for another model than plan {given[0].name!r}: fields of model differ"
                )
            key = (plan.schedule, plan.prefix)
            if key in seen:
                problems.append(f"plans {seen[key]!r} and {plan.name!r} are both for {schedule_text(plan.schedule)}")
            seen[key] = plan.name
        if problems:
            raise PlanError(problems, name or "plan set")
        return cls(name or given[0].name, given, rule)

    @property
    def model(self) -> ModelInfo:
        """The model that all plans are for."""
        return self.plans[0].model

    def choose(self, schedule: Schedule | None) -> Plan:
        """The plan of a schedule, or the only plan where the caller knows no schedule.

        Raises:
            PlanError: no plan covers the schedule, or several could be meant: lengths do not tell a grid from its
                transpose, so nothing is guessed.
        """
        if schedule is None:
            if len(self.plans) == 1:
                return self.plans[0]
            raise PlanError(
                message(
                    "schedule",
                    "be named by the model's call (scale_schedule, infer_patch_nums) where there are several plans",
                    f"none, and {len(self.plans)} plans",
                    "attach the one plan that is meant",
                ),
                self.name,
            )
        for plan in self.plans:
            if plan.schedule == schedule:
                return plan
        if self.rule is not None:
            return self.rule(schedule)
        covered = "; ".join(schedule_text(plan.schedule) for plan in self.plans)
        raise PlanError(
            message(
                "schedule",
                f"be one that a plan covers ({covered})",
                schedule_text(schedule),
                "pass a plan for it as well: plan=[plan, other]",
            ),
            self.name,
        )
