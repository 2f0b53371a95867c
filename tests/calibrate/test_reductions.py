"""What calibration makes of leaving out tokens and rows: candidates, their sums, the solver's cases, plans."""

from __future__ import annotations

import numpy as np
import pytest

from sparvar.calibrate.predict import Tag
from sparvar.calibrate.reductions import (
    NOTHING,
    Effects,
    Pruned,
    Reduction,
    expanded,
    guided_candidates,
    pruned_candidates,
    source_candidates,
)
from sparvar.calibrate.solver import Case, ScaleOptions
from sparvar.calibrate.space import Setting
from sparvar.scale_plans import Plan, dense_plan

SCHEDULE = tuple((side, side) for side in (1, 2, 4, 8, 16, 32))


def base() -> Plan:
    return dense_plan(SCHEDULE, ["a", "b"], heads=2, head_dim=64)


HALF = Reduction(conditional_from=6)
EARLY = Reduction(conditional_from=5)
FEW = Reduction(pruned=Pruned(4, ((6, 0.1),)))
EFFECTS = Effects({HALF: 1e-4, EARLY: 3e-4, FEW: 2e-4}, {4: 0.1, 5: 1.0, 6: 4.0})


def test_every_candidate_is_a_sound_plan() -> None:
    found = [*guided_candidates(base()), *source_candidates(base()), *pruned_candidates(base(), 4)]
    assert len(set(found)) == len(found) >= 10
    for each in found:
        plan = base().replace(**each.fields(2))
        assert not plan.all_dense
    assert base().replace(**NOTHING.fields(2)).digest == base().digest


def test_small_grids_have_fewer() -> None:
    tiny = dense_plan([(1, 1), (1, 1), (2, 2)], ["a"], heads=1, head_dim=64)
    assert all(round(share * 4) >= 1 for each in pruned_candidates(tiny, 1) for _, share in each.pruned.keep)  # type: ignore[union-attr]


def test_sums_and_front() -> None:
    both = Reduction(5, FEW.pruned)
    assert EFFECTS.of(both) == pytest.approx(5e-4)
    assert EFFECTS.saves(HALF) == pytest.approx(2.0)
    assert EFFECTS.saves(EARLY) == pytest.approx(2.5)
    assert EFFECTS.saves(FEW) == pytest.approx(3.6)
    assert EFFECTS.saves(both) == pytest.approx(0.5 + 0.95 * 4)
    front = EFFECTS.front()
    # dropping guidance from scale 5 on costs more than pruning and saves less: alone it is never the best
    assert front == [NOTHING, HALF, FEW, Reduction(6, FEW.pruned), both]


def case(decision: int) -> Case:
    options = ScaleOptions(6, np.zeros((1, 2)), np.array([-1.0]), np.zeros((1, 2)), np.array([0.0]), 0.5, 1.0)
    return Case(Tag(decision, Setting("relative", 2), None, ((0.2,),)), 0.2, (options,))


def test_cases() -> None:
    found = expanded([case(5)], [NOTHING, Reduction(5, FEW.pruned)], EFFECTS)
    assert [each.seconds for each in found] == pytest.approx([0.0, -4.3])
    assert [each.damage for each in found] == pytest.approx([0.0, 5e-4])
    # a twentieth of the last scale is left: a tenth of its tokens, of half of its rows
    assert found[1].scales[0].mapped_seconds[0] == pytest.approx(-0.05)
    assert found[1].scales[0].factor == pytest.approx(0.05)
    assert found[1].decide_seconds == pytest.approx(0.1), "the decision runs on half of the rows"
    assert found[1].tag.reduction == Reduction(5, FEW.pruned)


def test_columns_are_decided_before_tokens_are_pruned() -> None:
    late = Reduction(pruned=Pruned(3, ((5, 0.5), (6, 0.1))))
    effects = Effects({late: 1e-4}, EFFECTS.blocks)
    assert [each.tag.decision for each in expanded([case(4), case(5)], [late], effects)] == [4]
