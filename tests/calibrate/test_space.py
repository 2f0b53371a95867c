"""What is tried, and how it is narrowed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sparvar.calibrate.candidates.candidate import (
    ColumnCandidate,
    Setting,
    WindowCandidate,
    candidate_text,
    read_candidate,
)
from sparvar.calibrate.candidates.space import Choice, default_space, plan_of, sink_spans
from sparvar.calibrate.fit.predict import best_settings, candidates_of
from sparvar.calibrate.measure.images import split_prompts
from sparvar.calibrate.search.solver import MULTIPLIERS, ScaleOptions, _Search, solve
from sparvar.scale_plans import ModelInfo, Plan, dense_plan
from sparvar.scale_plans.presets.schedules import HART_1024, HART_TEXT_TOKENS, squares
from tests.calibrate.test_solver import problem

INFINITY = squares((1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64))


def base_of(schedule: tuple[tuple[int, int], ...] = INFINITY, prefix: int = 0) -> Plan:
    return dense_plan(schedule, ModelInfo(sites=["a", "b", "c"], heads=2, head_dim=64), prefix=prefix)


def test_sink_spans_are_shares_of_the_last_scale() -> None:
    base = base_of()
    assert sink_spans(base, 9) == (3, 4, 6)
    for span, share in zip((3, 4, 6), (0.003, 0.01, 0.03), strict=True):
        assert base.offset(span + 1) <= share * base.keys(13) < base.offset(span + 2)
    assert max(sink_spans(base, 5)) == 4  # all below the decision


def test_text_in_front_does_not_count_as_sinks() -> None:
    with_text, without = base_of(HART_1024, HART_TEXT_TOKENS), base_of(HART_1024)
    assert sink_spans(with_text, 9) == sink_spans(without, 9)


def test_every_choice_is_a_plan_without_contradictions() -> None:
    base = base_of()
    space = default_space(base)
    for setting in space.settings:
        for decision in space.decisions:
            targets = range(decision + 1, 14)
            choice = Choice(
                ("cs4a", "csla", "dense"),
                setting,
                decision,
                correction=True,
                budgets=tuple((target, 0.2) for target in targets),
                windows=tuple((target, 1) for target in targets),
            )
            plan = plan_of(base, space, choice)
            assert plan.check() == []
            found = candidates_of(plan, choice)
            assert found[13, 0] == ColumnCandidate(decision, setting, 0.2, 0.2)
            assert found[13, 1] == WindowCandidate(1, setting.sinks)
            assert len(found) == 2 * len(targets)


def test_candidates_are_read_as_they_were_written() -> None:
    texts = ["cs4a/11/relative+s5w7/0.2/-", "cs4a/9/footprint+s0w0/0.03/0.45", "csla/2+s4"]
    found = [read_candidate(text) for text in texts]
    assert found == [
        ColumnCandidate(11, Setting("relative", 5, 7), 0.2),
        ColumnCandidate(9, Setting("footprint", 0), 0.03, 0.45),
        WindowCandidate(2, 4),
    ]
    assert [candidate_text(candidate) for candidate in found] == texts
    odd = ColumnCandidate(3, Setting("identity", 1), 1 / 3, 2 / 7)
    assert read_candidate(candidate_text(odd)) == odd
    for text in ("csla/0", "cs4a/what", "cs4a/11/relative+s5/0.2/-", "dense", "csla/1+s2/3"):
        with pytest.raises(ValueError):
            read_candidate(text)


def test_screening_looks_at_one_scale_with_every_setting() -> None:
    space = default_space(base_of())
    screening = space.screening(13)
    assert screening.settings == space.settings
    assert screening.decisions == (10,)
    assert [scale for scale in range(1, 14) if screening.measured(scale)] == [12]
    assert all(space.measured(scale) for scale in range(10, 14)) and not space.measured(9)


def test_a_setting_that_only_keeps_more_keys_is_not_preferred() -> None:
    base = base_of()
    good, bad, wide = Setting("footprint", 4, 0), Setting("identity", 4, 0), Setting("relative", 6, 0)
    space = dataclasses.replace(default_space(base).screening(13), settings=(good, bad, wide))
    sums = {"errors": {}, "kept": {}, "recall": {}, "norm_seen": [1.0, 1.0], "calls": [1.0]}
    for setting, factor, more in ((good, 1.0, 1.0), (bad, 3.0, 1.0), (wide, 1.0, 1.5)):
        for budget in space.budgets:
            candidate = ColumnCandidate(10, setting, budget)
            # ``wide`` has the same error as ``good`` for half as many keys again.
            sums["errors"][candidate] = [factor * 0.01 / budget] * 2  # type: ignore[index]
            sums["kept"][candidate] = [more * budget]  # type: ignore[index]
    kept, scores = best_settings({(12, layer): sums for layer in range(3)}, base, space, 1)
    assert kept == [good]
    assert scores[good] == pytest.approx(scores[bad] / 3)
    assert scores[wide] == pytest.approx(1.5 * scores[good])


def test_a_barred_option_is_taken_by_no_layer_it_is_barred_from() -> None:
    cases = problem(3, layers=3, scales=2)
    free = solve(cases, 3, max_image_mse=2.0)
    assert free is not None and set(free.layers) != {0}

    def barred(scale: ScaleOptions) -> ScaleOptions:
        mapped, local = scale.mapped.copy(), scale.local.copy()
        mapped[1:, 1] = local[1:, 1] = np.inf
        return dataclasses.replace(scale, mapped=mapped, local=local)

    narrowed = [dataclasses.replace(case, scales=tuple(map(barred, case.scales))) for case in cases]
    answer = solve(narrowed, 3, max_image_mse=2.0)
    assert answer is not None
    assert answer.layers[1] == 0 or answer.options == ((0, 0), (0, 0))
    assert answer.seconds >= free.seconds
    by_time = solve(narrowed, 3, max_seconds=free.seconds / 2)
    assert by_time is None or np.isfinite(by_time.image_mse)


def test_bounds_hold_with_barred_options() -> None:
    case = problem(4, layers=3, scales=2)[0]
    mapped = case.scales[0].mapped.copy()
    mapped[1:, 0] = np.inf
    case = dataclasses.replace(case, scales=(dataclasses.replace(case.scales[0], mapped=mapped), case.scales[1]))
    search = _Search(case, 3, True, 0.5, True)
    for policies in ([1, 1, 1], [1, 0, 2], [0, 1, 2]):
        column = np.array(policies, dtype=float)
        found = search.best(column, np.inf)
        assert found is not None
        assert search.bounds(column[:, None], MULTIPLIERS)[0] <= found.seconds + 1e-12


def test_held_out_images_have_prompts_of_their_own_where_there_are_enough() -> None:
    fitted, held = split_prompts(range(24), 8)
    assert fitted == list(range(16)) and held == list(range(16, 24))
    few = list(range(10))
    assert split_prompts(few, 8) == (few, few)
