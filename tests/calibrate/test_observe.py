"""What an observer adds up, against the same computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparvar import kernels
from sparvar.calibrate.candidates.candidate import ColumnCandidate, Setting, WindowCandidate
from sparvar.calibrate.candidates.space import Space
from sparvar.calibrate.measure.observe import Observer, Sample, WindowMass, mass_on
from sparvar.calibrate.measure.pruning import PruningSums, representative_scale
from sparvar.runtime.columns import Columns
from sparvar.runtime.generation import Generation, SiteContext
from sparvar.runtime.site_ops import attend_columns
from sparvar.scale_plans import ModelInfo, Plan, dense_plan

TILE = (2, 4)


def base_of(last: tuple[int, int], prefix: int = 0) -> Plan:
    schedule = [(1, 1), (2, 3), (4, 5), (7, 6), last]
    return dense_plan(schedule, ModelInfo(sites=["a", "b"], heads=2, head_dim=16), prefix=prefix, tile=TILE)


def seen(observer: Observer, base: Plan, seed: int) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    """Let an observer see a generation of random tensors; returns layer 0's."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for scale in range(2, base.scales + 1):
        for layer in range(2):
            sizes = base.tokens(scale), base.keys(scale), base.keys(scale)
            operands = [torch.randn(2, 2, size, 16, generator=generator) for size in sizes]
            if layer == 0:
                found[scale] = tuple(operands)
            if scale in observer.scales:
                site = SiteContext(Generation(base, {}, lambda kind, scale: None), layer, scale)  # type: ignore[arg-type,return-value]
                observer.attention(site, *operands, 0.25)
    return found  # type: ignore[return-value]


SPACE = Space(
    decisions=(3,),
    settings=(Setting("identity", 2, 0), Setting("footprint", 1, 3)),
    budgets=(0.2, 0.5),
    firsts=(0.5,),
    ladders=({3: 1, 4: 3, 5: 3},),
    stride=1,
)


@pytest.mark.parametrize("last", [(8, 8), (13, 9), (3, 16)])
@pytest.mark.parametrize("turn", [0, 1])
def test_errors_are_those_of_the_sampled_queries(last: tuple[int, int], turn: int) -> None:
    base = base_of(last, prefix=3)
    observer = Observer(base, SPACE, PruningSums(base, representative_scale(base)), turn)
    operands = seen(observer, base, 1)
    scale = base.scales
    query, key, value = operands[scale]
    dense = torch.softmax(query.double() @ key.double().mT * 0.25, -1) @ value.double()
    sample = Sample(last, TILE, turn)
    site = observer.sites[scale, 0]
    norm = sample.queries(dense).square().sum((0, 2, 3))
    assert site["norm_seen"] == pytest.approx(norm.tolist(), rel=1e-4)
    assert site["norm"] == pytest.approx(dense.square().sum((0, 2, 3)).tolist(), rel=1e-4)
    # csla: lists do not depend on the tensors.
    windows = kernels.LocalWindows(kernels.Schedule.of(base.schedule, 3), scale, TILE, (0, 0, 1, 3, 3), 2)
    lists = kernels.local_columns(windows)
    full = attend_columns(query, key, value, Columns(*lists), None, 0.25, kernels.QueryTiles(last, TILE))
    error = (sample.queries(full.double()) - sample.queries(dense)).square().sum((0, 2, 3))
    assert site["errors"][WindowCandidate(0, 2)] == pytest.approx(error.tolist(), rel=1e-3, abs=1e-6)
    # Every candidate was measured, with fewer keys and more error for less budget.
    for setting in SPACE.settings:
        for first in (None, 0.5):
            low, high = (sum(site["errors"][ColumnCandidate(3, setting, budget, first)]) for budget in SPACE.budgets)
            # One to one, a map keeps no more keys than the source has.
            assert 0 < high < low or (setting.index_map == "identity" and high == low)


@pytest.mark.parametrize(("height", "step"), [(2, 1), (7, 2), (8, 2), (12, 3), (64, 3)])
def test_turns_cover_every_query_once(height: int, step: int) -> None:
    grid = (height, 5)
    marks = torch.arange(height * 5.0).view(1, 1, -1, 1)
    parts = [Sample(grid, TILE, turn) for turn in range(step)]
    together = torch.cat([part.queries(marks).flatten() for part in parts])
    assert sorted(together.tolist()) == marks.flatten().tolist()
    assert [part.grid[0] * 5 for part in parts] == [part.queries(marks).shape[2] for part in parts]
    assert sum(part.tiles(torch.zeros(1, 1, -(-height // 2) * 2)).shape[2] for part in parts) == -(-height // 2) * 2


def test_window_mass_is_what_lies_in_the_windows() -> None:
    base = base_of((8, 8), prefix=2)
    found: dict[str, dict[str, list[float]]] = {}
    sums = torch.rand(1, 2, 8, base.keys(5), generator=torch.Generator().manual_seed(0))
    WindowMass(base).add(5, sums, found)
    shares = {place: values[0] for place, values in found["near"].items()}
    # Windows as wide as can be hold the whole of scales 1 and 2, 1x1 and 2x3.
    start, end = base.offset(1), base.offset(3)
    expected = (sums[..., start:end].sum(-1) / sums.sum(-1)).mean()
    assert shares["4/1"] + shares["3/5"] == pytest.approx(float(expected), rel=1e-5)
    assert all(0 < share < 1 for share in shares.values())
    every = Columns(
        torch.arange(base.keys(5), dtype=torch.int32).expand(1, 1, 8, -1), torch.full((1, 1, 8), base.keys(5)).int()
    )
    assert torch.allclose(mass_on(every, sums), sums.sum(-1))


def test_nan_names_layer_and_scale() -> None:
    from sparvar.errors import SparvarError

    base = base_of((8, 8))
    observer = Observer(base, SPACE)
    site = SiteContext(Generation(base, {}, lambda kind, scale: None), 1, 4)  # type: ignore[arg-type,return-value]
    bad = torch.full((1, 2, base.keys(4), 16), float("nan"))
    with pytest.raises(SparvarError, match="attention of layer 1 at scale 4: must be finite"):
        observer.attention(site, torch.ones(1, 2, base.tokens(4), 16), bad, bad, 0.25)
