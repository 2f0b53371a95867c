"""The solver against brute force over everything it may choose."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from sparvar.calibrate.search import solver
from sparvar.calibrate.search.solver import Case, ScaleOptions, solve


def problem(seed: int, layers: int, scales: int, options: int = 3, local: int = 2) -> list[Case]:
    random = np.random.default_rng(seed)

    def at(scale: int, first: bool) -> ScaleOptions:
        errors = np.sort(random.uniform(0.01, 0.5, (options, layers)), axis=0)[::-1]
        mapped = np.concatenate([np.zeros((1, layers)), errors])
        seconds = np.concatenate([[0.0], -np.sort(random.uniform(0.0, 1.0, options))[::-1]])
        near = np.concatenate([np.zeros((1, layers)), random.uniform(0.01, 0.8, (local, layers))])
        near_seconds = np.concatenate([[0.0], -random.uniform(0.2, 1.2, local)])
        factor, power = random.uniform(0.1, 1), random.uniform(0.3, 1)
        return ScaleOptions(scale, mapped, seconds, near, near_seconds, factor, power, must_map=first)

    return [
        Case(f"case {number}", 0.05, tuple(at(scale, number == 1 and scale == 0) for scale in range(scales)))
        for number in range(2)
    ]


def brute(cases: list[Case], layers: int, damage_limit: float | None, seconds_limit: float | None) -> float | None:
    best: float | None = None
    for case in cases:
        for policies in itertools.product(range(3), repeat=layers):
            mapped = [layer for layer in range(layers) if policies[layer] == 1]
            near = [layer for layer in range(layers) if policies[layer] == 2]
            ranges = [itertools.product(range(len(s.mapped)), range(len(s.local))) for s in case.scales]
            for picked in itertools.product(*ranges):
                damage, seconds = case.image_mse, case.seconds + len(mapped) * case.decide_seconds
                for scale, (j, m) in zip(case.scales, picked, strict=True):
                    if scale.must_map and j == 0 and mapped:
                        damage = np.inf
                    error = sum(scale.mapped[j][layer] for layer in mapped)
                    error += sum(scale.local[m][layer] for layer in near)
                    damage += scale.factor * error**scale.power if error > 0 else 0.0
                    seconds += len(mapped) * scale.mapped_seconds[j] + len(near) * scale.local_seconds[m]
                goal, used, limit = (
                    (seconds, damage, damage_limit) if damage_limit is not None else (damage, seconds, seconds_limit)
                )
                if limit is not None and used <= limit + 1e-12 and (best is None or goal < best):
                    best = goal
    return best


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("limit", [0.02, 0.3, 0.8])
def test_least_seconds_is_that_of_brute_force(seed: int, limit: float) -> None:
    cases = problem(seed, layers=3, scales=2)
    answer = solve(cases, 3, max_image_mse=limit)
    assert answer is not None and answer.exact
    assert answer.image_mse <= limit
    assert answer.seconds == pytest.approx(brute(cases, 3, limit, None))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limits", [(0.3, None), (None, -2.5)], ids=str)
def test_what_cases_leave_out_beside_columns(seed: int, limits: tuple[float | None, float | None]) -> None:
    """Cases with damage and seconds of their own, some of them beyond the limit alone."""
    random = np.random.default_rng(seed)
    cases = [
        dataclasses.replace(case, image_mse=damage, seconds=-seconds)
        for case in problem(seed, layers=2, scales=2)
        for damage, seconds in [(0.0, 0.0), *random.uniform((0.0, 0.0), (0.4, 1.5), (3, 2))]
    ]
    answer = solve(cases, 2, max_image_mse=limits[0], max_seconds=limits[1])
    expected = brute(cases, 2, *limits)
    assert answer is not None and expected is not None
    assert (answer.seconds if limits[0] is not None else answer.image_mse) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_least_damage_is_that_of_brute_force(seed: int) -> None:
    cases = problem(seed, layers=3, scales=2)
    answer = solve(cases, 3, max_seconds=-2.0)
    expected = brute(cases, 3, None, -2.0)
    assert (answer is None) == (expected is None)
    if answer is not None and expected is not None:
        assert answer.seconds <= -2.0
        assert answer.image_mse == pytest.approx(expected)


def test_no_damage_allowed_is_all_dense() -> None:
    answer = solve(problem(0, layers=3, scales=2), 3, max_image_mse=0.0)
    assert answer is not None
    assert answer.seconds == 0.0
    assert all(option == (0, 0) for option in answer.options) or set(answer.layers) == {0}


def test_nothing_within_the_limits_is_none() -> None:
    cases = problem(0, layers=3, scales=2)
    assert solve(cases, 3, max_seconds=-1e6) is None
    assert solve(cases, 3, max_image_mse=0.01, max_seconds=-1e6) is None


def test_the_search_of_many_layers_is_never_worse_than_one_policy_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    # Small enough for the exact search, which the local one is compared with.
    cases = problem(1, layers=5, scales=3)
    exact = solve(cases, 5, max_image_mse=0.6)
    monkeypatch.setattr(solver, "EXACT_ASSIGNMENTS", 0)
    near = solve(cases, 5, max_image_mse=0.6)
    assert exact is not None and near is not None
    assert not near.exact
    assert near.image_mse <= 0.6
    assert exact.seconds <= near.seconds <= 0.9 * exact.seconds


def test_forty_layers_and_thirteen_scales_are_searched() -> None:
    answer = solve(problem(2, layers=40, scales=13, options=4), 40, max_image_mse=2.0)
    assert answer is not None and not answer.exact
    assert answer.image_mse <= 2.0
    assert answer.seconds < 0
