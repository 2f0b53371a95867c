"""What calibration makes of leaving out tokens and rows: candidates, their sums, the solver's cases, plans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sparvar.calibrate.candidates.candidate import Setting
from sparvar.calibrate.candidates.compression import Compression, compressed_cases
from sparvar.calibrate.candidates.reductions import (
    NO_REDUCTION,
    Effects,
    Pruned,
    Reduction,
    guided_candidates,
    pruned_candidates,
    skipped_candidates,
    skipped_pruned_candidates,
    source_candidates,
    with_reductions,
)
from sparvar.calibrate.fit.predict import Tag
from sparvar.calibrate.measure.measured import Measured
from sparvar.calibrate.search.solver import Case, ScaleOptions, solve
from sparvar.scale_plans import ModelInfo, Plan, dense_plan, local

SCHEDULE = tuple((side, side) for side in (1, 2, 4, 8, 16, 32))


def base() -> Plan:
    return dense_plan(SCHEDULE, ModelInfo(sites=["a", "b"], heads=2, head_dim=64))


HALF = Reduction(conditional_from=6)
EARLY = Reduction(conditional_from=5)
FEW = Reduction(pruned=Pruned(4, ((6, 0.1),)))
EFFECTS = Effects({HALF: 1e-4, EARLY: 3e-4, FEW: 2e-4}, {4: 0.1, 5: 1.0, 6: 4.0}, 6)


def test_every_candidate_is_a_sound_plan() -> None:
    found = [*guided_candidates(base()), *source_candidates(base()), *pruned_candidates(base(), 4)]
    found += [
        *skipped_candidates(base()),
        *skipped_pruned_candidates(base(), 1, 2),
        *skipped_pruned_candidates(base(), 2, 1),
    ]
    assert len(set(found)) == len(found) >= 10
    for each in found:
        plan = base().replace(**each.fields(2))
        assert not plan.all_dense
    assert base().replace(**NO_REDUCTION.fields(2)).digest == base().digest


def test_small_grids_have_fewer() -> None:
    tiny = dense_plan([(1, 1), (1, 1), (2, 2)], ModelInfo(sites=["a"], heads=1, head_dim=64))
    assert all(round(share * 4) >= 1 for each in pruned_candidates(tiny, 1) for _, share in each.pruned.keep)  # type: ignore[union-attr]


def test_sums_and_front() -> None:
    both = Reduction(5, FEW.pruned)
    assert EFFECTS.predicted_mse(both) == pytest.approx(5e-4)
    assert EFFECTS.saves(HALF) == pytest.approx(2.0)
    assert EFFECTS.saves(EARLY) == pytest.approx(2.5)
    assert EFFECTS.saves(FEW) == pytest.approx(3.6)
    assert EFFECTS.saves(both) == pytest.approx(0.5 + 0.95 * 4)
    front = EFFECTS.front()
    # dropping guidance from scale 5 on costs more than pruning and saves less: alone it is never the best
    assert front == [NO_REDUCTION, HALF, FEW, Reduction(6, FEW.pruned), both]


def case(decision: int) -> Case:
    options = ScaleOptions(6, np.zeros((1, 2)), np.array([-1.0]), np.zeros((1, 2)), np.array([0.0]), 0.5, 1.0)
    return Case(Tag(decision, Setting("relative", 2), None, ((0.2,),)), 0.2, (options,))


def test_cases() -> None:
    found = with_reductions([case(5)], [NO_REDUCTION, Reduction(5, FEW.pruned)], EFFECTS)
    assert [each.seconds for each in found] == pytest.approx([0.0, -4.3])
    assert [each.image_mse for each in found] == pytest.approx([0.0, 5e-4])
    # a twentieth of the last scale is left: a tenth of its tokens, of half of its rows
    assert found[1].scales[0].mapped_seconds[0] == pytest.approx(-0.05)
    assert found[1].scales[0].factor == pytest.approx(0.05)
    assert found[1].decide_seconds == pytest.approx(0.1), "the decision runs on half of the rows"
    assert found[1].tag.reduction == Reduction(5, FEW.pruned)


def test_columns_are_decided_before_tokens_are_pruned() -> None:
    late = Reduction(pruned=Pruned(3, ((5, 0.5), (6, 0.1))))
    effects = Effects({late: 1e-4}, EFFECTS.blocks, 6)
    assert [each.tag.decision for each in with_reductions([case(4), case(5)], [late], effects)] == [4]


SHORT = Reduction(skip=1)
SHORT_FEW = Reduction(pruned=Pruned(3, ((5, 0.1),)), skip=1)


def test_a_skipped_scale_costs_nothing_and_saves_all_of_it() -> None:
    effects = Effects({HALF: 1e-4, EARLY: 3e-4, SHORT: 4e-4, SHORT_FEW: 5e-4}, EFFECTS.blocks, 6)
    assert effects.saves(SHORT) == pytest.approx(4.0)
    assert effects.saves(SHORT_FEW) == pytest.approx(4.9)
    # of guidance dropped from scale 5 on, what scale 6 did to the image is not there where that is skipped
    both = Reduction(5, SHORT_FEW.pruned, 1)
    assert effects.predicted_mse(both) == pytest.approx(5e-4 + 3e-4 - 1e-4)
    assert effects.saves(both) == pytest.approx(4.0 + 0.95)
    front = effects.front()
    assert front == [NO_REDUCTION, HALF, EARLY, SHORT, SHORT_FEW, both]
    assert not any(each.skip and each.conditional_from > 5 for each in front), "guidance of a skipped scale"


def test_cases_of_skipped_scales_decide_before_and_take_no_options_there() -> None:
    effects = Effects({SHORT: 4e-4}, EFFECTS.blocks, 6)
    found = with_reductions([case(4), case(5)], [SHORT], effects)
    assert [each.tag.decision for each in found] == [4], "a scale that is drawn must come after the decision"
    assert found[0].seconds == pytest.approx(-4.0) and found[0].image_mse == pytest.approx(4e-4)
    assert found[0].scales[0].mapped_seconds[0] == 0 and found[0].scales[0].factor == 0


def test_a_compressed_cache_leaves_windows_alone() -> None:
    plan = base().replace(kv=local(base(), 100))
    measured = Measured((1e-4,), (5.0,), scale_seconds={6: 3.0})
    dense = Measured((1e-10,), (6.0,), scale_seconds={6: 4.0})
    options = ScaleOptions(
        6, np.array([[0.0, 0.0], [0.1, 0.1]]), np.array([0.0, -2.0]), np.array([[0.0, 0.0], [0.2, 0.2]]),
        np.array([0.0, -1.5]), 0.5, 1.0,
    )  # fmt: skip
    plain = Case(Tag(4, Setting("relative", 2), None, ((0.2,),)), 0.2, (options,))
    corrected = replace(plain, scales=(replace(options, must_map=True),))
    (found,) = compressed_cases([plain, corrected], Compression(plan, measured, {}), dense)
    assert found.image_mse == pytest.approx(1e-4)
    (scale,) = found.scales
    assert scale.mapped.shape == (1, 2) and list(scale.mapped_seconds) == [0.0]
    # a layer of dense attention over what is left takes half a second less, of two
    assert list(scale.local_seconds) == pytest.approx([0.0, -1.0])
    answer = solve([found], 2, max_image_mse=1.0)
    assert answer is not None and set(answer.layers) == {2} and answer.seconds == pytest.approx(-2.0)
