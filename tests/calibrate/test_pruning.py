"""ToProVAR's quantities against float64 by hand, and thresholds against a search through everything."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparvar.backend import attachment_of, compile, detach
from sparvar.calibrate.fit.predict import Sensitivity
from sparvar.calibrate.fit.thresholds import ALPHAS, choose_thresholds, importance
from sparvar.calibrate.measure.prunable import classify, map_ratio, otsu, reachable, score_curve
from sparvar.calibrate.measure.pruning import SHARES, PruningSums, representative_scale
from sparvar.errors import SparvarError
from sparvar.kernels import attention_stats
from sparvar.runtime.generation import SiteContext
from sparvar.runtime.hooks import Hook
from sparvar.scale_plans import ModelInfo, Plan, Thresholds, dense_plan, keep_count, start_scale
from tests.tiny import dense_changes, generate, tiny_model, tiny_plan

GRIDS = [(1, 1), (2, 3), (3, 5), (4, 7), (6, 9)]


def plan_of(grids: list[tuple[int, int]], layers: int = 1) -> Plan:
    return dense_plan(grids, ModelInfo(sites=[f"layer{layer}" for layer in range(layers)], heads=2, head_dim=8))


def resize(source: int, target: int) -> Tensor:
    """Weights [target, source] of linear resizing between cell centres, float64."""
    table = torch.zeros(target, source, dtype=torch.float64)
    for cell in range(target):
        centre = max((cell + 0.5) * source / target - 0.5, 0.0)
        below = min(int(centre), source - 1)
        above = min(below + 1, source - 1)
        table[cell, below] += 1 - (centre - below)
        table[cell, above] += centre - below
    return table


def by_hand(previous: Tensor, source: tuple[int, int], out: Tensor, target: tuple[int, int], entropy: Tensor) -> Any:
    """Share to squared error, every query by itself in float64."""
    rows, heads, tokens, dim = out.shape
    grid = previous.double().reshape(rows, heads, *source, dim)
    grown = torch.einsum("yi,xj,bhijd->bhyxd", resize(source[0], target[0]), resize(source[1], target[1]), grid)
    lost = (grown.reshape(rows, heads, tokens, dim) - out.double()).square().sum((1, 3))
    mean = entropy.double().mean(1)
    found = {}
    for share in SHARES:
        total = 0.0
        for row in range(rows):
            ranked = sorted(range(tokens), key=lambda query: (-float(mean[row, query]), query))
            total += sum(float(lost[row, query]) for query in ranked[: round(share * tokens)])
        found[f"{share:g}"] = total
    return found


def site(tokens: int, rows: int = 2) -> tuple[Tensor, Tensor]:
    """(output in the layout of attention, entropies with ties) of 3 heads."""
    out = torch.randn(rows, tokens, 3, 8).transpose(1, 2)
    return out, torch.rand(rows, 3, tokens).mul(8).round() / 4


def test_sums_equal_float64_by_hand() -> None:
    base = plan_of(GRIDS, 2)
    sums = PruningSums(base, 3)
    found: dict[tuple[int, int], dict[str, Any]] = {}
    expected: dict[tuple[int, int], dict[str, Any]] = {}
    for _prompt in range(2):
        before: dict[int, Tensor] = {}
        for scale in range(2, 6):
            for layer in range(2):
                out, entropy = site(base.tokens(scale))
                sums.add(scale, layer, out, entropy, found.setdefault((scale, layer), {}))
                want = expected.setdefault((scale, layer), {"rho": 0.0, "map": 0.0, "prune": {}})
                tokens = entropy.double().mean(1)
                want["rho"] += float((tokens < tokens.mean(1, keepdim=True)).double().mean())
                want["map"] += entropy.double().mean((0, 1))
                if scale > 2:
                    args = before[layer], base.grid(scale - 1), out, base.grid(scale), entropy
                    for share, error in by_hand(*args).items():
                        want["prune"][share] = want["prune"].get(share, 0.0) + error
                before[layer] = out.clone()
                out.fill_(math.nan)  # the buffer is used again
        assert not sums._before
    for place, want in expected.items():
        got = found[place]
        assert got["rho"] == pytest.approx([want["rho"]], abs=1e-6)
        assert ("entropy_map" in got) == (place[0] == 3)
        if "entropy_map" in got:
            assert got["entropy_map"] == pytest.approx(want["map"].tolist(), rel=1e-12)
        assert {share: values[0] for share, values in got.get("prune", {}).items()} == {
            # A difference of fp32 values up to 5 is off by some 16 roundings of 6e-8, its square by twice that.
            share: pytest.approx(error, rel=1e-5, abs=1e-5)
            for share, error in want["prune"].items()
        }
    json.dumps([*found.values()], allow_nan=False)


def test_a_generation_that_was_given_up_leaves_nothing() -> None:
    base = plan_of(GRIDS)
    sums = PruningSums(base, 3)
    for scale in (2, 3, 4, 2):
        found: dict[str, Any] = {}
        sums.add(scale, 0, *site(base.tokens(scale)), found)
    assert "prune" not in found


def test_rows_may_fall_but_not_rise() -> None:
    base = plan_of(GRIDS)
    sums = PruningSums(base, 3)
    first, _ = site(6)
    sums.add(2, 0, first, torch.rand(2, 3, 6), {})
    out, entropy = site(15, rows=1)
    found: dict[str, Any] = {}
    sums.add(3, 0, out, entropy, found)
    expected = by_hand(first[:1], (2, 3), out, (3, 5), entropy)
    assert {share: values[0] for share, values in found["prune"].items()} == pytest.approx(expected, rel=1e-5)
    with pytest.raises(SparvarError, match="layer 0 at scale 4: must have at most the 1 rows of scale 3, got 2"):
        sums.add(4, 0, *site(28), {})


def test_representative_scale() -> None:
    found = {count: representative_scale(plan_of([(k, k) for k in range(1, count + 1)])) for count in range(1, 15)}
    assert found[13] == 6
    assert {count: found[count] for count in (1, 2, 3, 6, 10, 11)} == {1: 1, 2: 2, 3: 2, 6: 3, 10: 5, 11: 5}
    assert all(scale <= count for count, scale in found.items())


def test_importance() -> None:
    found = importance([[1.0, 3.0], [0.0, 4.0]], 6, 13, 0.8)
    factor = 6 / 13 * 0.8
    assert found == [[0.5 * factor, 1.5 * factor], [0.0, 2 * factor]]
    assert importance([[0.0, 0.0]], 13, 13, 0.5) == [[0.5, 0.5]]


def entropy_map(ratio: float, grid: tuple[int, int] = (4, 7)) -> Tensor:
    """A map [h, w] with sigma1 / sigma2 equal to ``ratio``."""
    left, _ = torch.linalg.qr(torch.randn(grid[0], 2, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(grid[1], 2, dtype=torch.float64))
    return left @ torch.diag(torch.tensor([ratio, 1.0], dtype=torch.float64)) @ right.T


def test_ratio_of_singular_values() -> None:
    assert map_ratio(entropy_map(7.0)) == pytest.approx(7, rel=1e-12)
    assert map_ratio(torch.ones(4, 7) * 3) == math.inf
    assert map_ratio(torch.zeros(4, 7)) == math.inf
    assert map_ratio(torch.tensor([[1.0, 2.0, 3.0]])) == math.inf


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12))
def test_the_best_split_leaves_least_within(values: list[float]) -> None:
    def within(part: list[float]) -> float:
        return sum((value - math.fsum(part) / len(part)) ** 2 for value in part)

    split, share = otsu(values)
    whole = within(values)
    ways = [([v for v in values if v <= cut], [v for v in values if v > cut]) for cut in values]
    least = min((within(low) + within(high) for low, high in ways if high), default=whole)
    assert min(values) <= split <= max(values)
    if whole > 1e-6:
        assert share == pytest.approx(1 - least / whole, abs=1e-9)
        assert within([v for v in values if v <= split]) + within([v for v in values if v > split]) == pytest.approx(
            least, abs=1e-9 * whole
        )


def test_two_kinds_of_layers() -> None:
    layers = classify([401, 11, 9, 361, math.inf, 13])
    # The split of the finite ones: geometrically between 12 and 360.
    assert layers.classes == ("global", "detail", "detail", "global", "global", "detail")
    assert layers.beta is not None
    assert layers.beta == pytest.approx(math.log(2) / math.sqrt(12 * 360), rel=1e-5)
    assert layers.scores[1] == pytest.approx(math.exp(-layers.beta * 10), abs=5e-5)
    assert [score == 0 for score in layers.scores] == [True, False, False, True, True, False]


@pytest.mark.parametrize(
    ("ratios", "kept"),
    [
        ([7.0], 1),  # one layer
        ([7.0, 7.0, 7.0], 3),  # all the same
        ([math.inf, math.inf], 2),
        ([200.0, 210.0], 2),  # two of a kind: the split between them is no gap
        ([1 + 200 * 1.1**step for step in range(6)], 6),  # evenly spread
    ],
)
def test_layers_of_one_kind_are_kept(ratios: list[float], kept: int) -> None:
    layers = classify(ratios)
    assert layers.classes == ("ambiguous",) * kept
    assert layers.scores == (0.0,) * kept


def test_a_weak_split_gives_no_beta() -> None:
    values = [-5, *[-0.75] * 10, *[0.75] * 10, 5]
    assert otsu(values)[1] < 0.5
    layers = classify([1 + math.exp(value) for value in values])
    assert layers.beta is None
    assert set(layers.classes) == {"ambiguous"}


def test_score_curve() -> None:
    curve = score_curve([1.0, 11.0, math.inf], 0.1)
    assert curve["0.1"] == [1.0, round(math.exp(-1), 4), 0.0]
    assert len(score_curve([11.0, math.inf], None)) == 7
    assert score_curve([math.inf, math.inf], None) == score_curve([], None) == {}


@given(st.dictionaries(st.integers(2, 13), st.floats(0, 1), max_size=12))
def test_every_reachable_start_and_no_other(rho: dict[int, float]) -> None:
    taus = reachable(rho)
    assert {start_scale(rho, tau) for tau in taus.values()} == set(taus)
    assert all(start_scale(rho, tau) == start for start, tau in taus.items())
    tried = {start_scale(rho, tau) for tau in rho.values() if tau > 0}
    assert tried == set(taus)


def sites_of(
    base: Plan, ratios: list[float], rho: list[float], representative: int = 2
) -> dict[tuple[int, int], dict[str, Any]]:
    """Sums of two prompts at scales 2..K: given ratios and rho, random errors of pruning from scale 3 on."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for scale in range(2, base.scales + 1):
        for layer, ratio in enumerate(ratios):
            sums: dict[str, Any] = {"calls": [2.0], "rho": [2 * rho[scale - 2]], "norm": [30.0, 20.0]}
            if scale == representative:
                sums["entropy_map"] = (2 * entropy_map(ratio, base.grid(scale))).flatten().tolist()
            if scale > 2:
                errors = (torch.rand(len(SHARES)).cumsum(0) * 5).tolist()
                sums["prune"] = {f"{share:g}": [error] for share, error in zip(SHARES, errors, strict=True)}
            found[scale, layer] = sums
    return found


BASE = plan_of([(1, 1), (3, 4), (5, 6), (7, 8), (10, 9), (12, 12)], 4)
RATIOS = [11.0, 401.0, 15.0, 421.0]
RHO = [0.3, 0.35, 0.33, 0.41, 0.45]
SENSITIVITY = Sensitivity((1.0, 2.0, 0.5, 1.0), {4: 2e-3, 6: 5e-3}, {4: 0.5, 6: 0.8})


def exhausted(sites: Any, base: Plan, scores: list[float], starts: list[int], limit: float) -> tuple[int, int]:
    """(most tokens pruned within the limit, allowed choices) by trying everything, with formulas written out."""
    best, allowed = 0, 0
    for start in starts:
        for low in ALPHAS:
            for high in ALPHAS:
                if high < low:
                    continue
                pruned, image_mse = 0, 0.0
                for scale in range(start, base.scales + 1):
                    height, width = base.schedule[scale - 1]
                    tokens, law = height * width, 6 if scale >= 5 else 4
                    error = 0.0
                    for layer, score in enumerate(scores):
                        wanted = round(tokens * (low + (high - low) * scale / base.scales * score)) if score else 0
                        gone = min(wanted, int(0.9 * tokens))
                        points = [(0.0, 0.0)]
                        for share, values in sites[scale, layer]["prune"].items():
                            points.append((round(float(share) * tokens) / tokens, values[0] / 50))
                        for (x0, y0), (x1, y1) in itertools.pairwise(points):
                            if x0 <= gone / tokens <= x1:
                                value = y0 + (y1 - y0) * (gone / tokens - x0) / (x1 - x0)
                        pruned += gone
                        error += SENSITIVITY.weights[layer] * value
                    image_mse += SENSITIVITY.factors[law] * error ** SENSITIVITY.powers[law]
                if image_mse <= limit and pruned:
                    best, allowed = max(best, pruned), allowed + 1
    return best, allowed


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.sampled_from([1e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.0]))
def test_the_choice_is_the_most_that_the_image_error_allows(seed: int, limit: float) -> None:
    torch.manual_seed(seed)
    sites = sites_of(BASE, RATIOS, RHO)
    chosen, report = choose_thresholds(sites, BASE, SENSITIVITY, limit)
    most, allowed = exhausted(sites, BASE, report["scores"], [3, 5, 6], limit)
    tokens = [BASE.tokens(scale) for scale in range(1, BASE.scales + 1)]
    if not allowed:
        assert chosen == Thresholds()
        assert report["alpha"] is None
        assert "the least pruning is predicted to cost" in report["notes"][-1]
        return
    assert report["alpha"]["image_mse"] <= limit
    assert chosen.start in (3, 5, 6)
    assert chosen.tau is not None and start_scale(dict(enumerate(RHO, start=2)), chosen.tau) == chosen.start
    gone = sum(
        count - keep_count(chosen, scale, layer, count, BASE.scales)
        for scale, count in enumerate(tokens, start=1)
        for layer in range(4)
    )
    assert gone == most == round(report["alpha"]["pruned_share"] * 4 * sum(tokens))
    assert BASE.replace(thresholds=chosen).thresholds == chosen
    json.dumps(report, allow_nan=False)


def test_the_report() -> None:
    sites = sites_of(BASE, RATIOS, RHO)
    chosen, report = choose_thresholds(sites, BASE, SENSITIVITY, 1.0)
    assert report["classes"] == ["detail", "global", "detail", "global"]
    assert report["ratio"] == pytest.approx(RATIOS)
    assert report["rho"] == pytest.approx(dict(zip("23456", RHO, strict=True)))
    assert [chosen.start, chosen.tau] == [3, pytest.approx(0.325)]  # everything is allowed: the earliest prunes most
    assert (chosen.alpha_min, chosen.alpha_max, chosen.min_keep) == (0.9, 0.9, 0.1)
    depth = {tau: start for tau, start in report["depth"]}
    assert [depth[tau] for tau in (0.3, 0.31, 0.35, 0.36, 0.45, 0.46, 0.7)] == [2, 3, 3, 5, 6, None, None]
    assert len(report["depth"]) == 42 and chosen.tau in depth
    shares = [point["pruned_share"] for point in report["alpha_curve"]]
    assert shares == sorted(shares)
    assert [point["alpha_max"] for point in report["alpha_curve"]] == list(ALPHAS)
    assert report["alpha"]["image_mse"] <= report["max_image_mse"]
    assert report["prune_error"]["6"]["3"]["0.5"] == pytest.approx(
        math.sqrt(sites[6, 3]["prune"]["0.5"][0] / 50), rel=1e-12
    )
    assert "2" not in report["prune_error"]
    assert len(report["entropy_maps"]) == 4 and len(report["entropy_maps"][0]) == 3
    assert report["notes"] == []
    again = json.loads(json.dumps(report))
    assert again == report


@pytest.mark.parametrize(
    ("ratios", "rho", "note"),
    [
        (RATIOS, [0.5, 0.4, 0.4, 0.3, 0.2], "rho reaches no new height after the representative scale"),
        (RATIOS, [0.0, 0.0, 0.0, 0.0, 0.0], "rho reaches no new height after the representative scale"),
        ([11.0] * 4, RHO, "the layers do not part into two kinds"),
        ([200.0, 205.0, 212.0, 210.0], RHO, "no layer is clearly a detail layer"),
    ],
)
def test_nothing_is_pruned_where_the_quantities_say_nothing(ratios: list[float], rho: list[float], note: str) -> None:
    if len(set(ratios)) == 1:
        sites = sites_of(BASE, ratios, rho)
        for layer in range(1, 4):
            sites[2, layer]["entropy_map"] = sites[2, 0]["entropy_map"]
    else:
        sites = sites_of(BASE, ratios, rho)
    chosen, report = choose_thresholds(sites, BASE, SENSITIVITY, 1.0)
    assert chosen == Thresholds()
    assert report["start"] is None
    assert any(line.startswith(note) for line in report["notes"])
    json.dumps(report, allow_nan=False)


def test_no_start_where_the_error_was_not_measured() -> None:
    sites = sites_of(BASE, RATIOS, RHO)
    del sites[3, 0]["prune"]
    chosen, report = choose_thresholds(sites, BASE, SENSITIVITY, 1.0)
    assert chosen.start == 5
    assert report["notes"] == ["the error of pruning was not measured at scale 3: pruning starts later, if at all"]


class Watch(Hook):
    """An observer that does nothing but these sums."""

    def __init__(self, base: Plan) -> None:
        self.scales = tuple(range(2, base.scales + 1))
        self.sums = PruningSums(base, representative_scale(base))
        self.sites: dict[tuple[int, int], dict[str, Any]] = {}

    def attention(self, site: SiteContext, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        out, _, entropy = attention_stats(query, key, value, scale)
        found = self.sites[site.scale, site.layer] = {"calls": [1.0], "norm": [float(out.square().sum())]}
        self.sums.add(site.scale, site.layer, out, entropy, found)
        return out


def test_thresholds_of_a_model() -> None:
    """From a generation to a plan that can be saved; it computes what it did without them."""
    model = tiny_model()
    base = tiny_plan(model, **dense_changes())
    with torch.inference_mode():
        compile(model, base, inner="eager")
        attachment = attachment_of(model)
        assert attachment is not None
        watch = Watch(base)
        with attachment.hooked(watch):
            generate(model)
        detach(model)
    assert set(watch.sites) == {(scale, layer) for scale in range(2, 7) for layer in range(3)}
    chosen, report = choose_thresholds(watch.sites, base, Sensitivity((1.0,) * 3, {6: 1e-3}, {6: 0.5}), 1.0)
    assert report["representative"] == 3
    assert set(report["prune_error"]) == {"3", "4", "5", "6"}
    assert all(0 <= share <= 1 for share in report["rho"].values())
    plan = base.replace(thresholds=chosen)
    assert Plan.loads(plan.dumps(), strict_digest=True) == plan
    assert plan.planned_sites() == base.planned_sites() == 0
