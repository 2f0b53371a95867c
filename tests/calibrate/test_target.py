"""Costs of a named GPU: what a generation asks of it, and a table that the solver can use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparvar import kernels
from sparvar.calibrate.candidates.candidate import Candidate, ColumnCandidate, WindowCandidate
from sparvar.calibrate.candidates.space import Space, default_space, plan_of
from sparvar.calibrate.fit.predict import Sensitivity, cases, choice_of
from sparvar.calibrate.measure.target_gpu import TARGET_DTYPE, target_costs, work_outside_attention
from sparvar.calibrate.search.solver import solve
from sparvar.errors import KernelError
from sparvar.scale_plans import ModelInfo, Plan, dense_plan
from tests.calibrate.progress import Lines
from tests.tiny import generate, tiny_model

pytest.importorskip("triton")

SIDES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)
LAYERS = 2


@pytest.fixture(scope="module")
def base() -> Plan:
    schedule = [(side, side) for side in SIDES]
    names = [f"blocks.{layer}.attn" for layer in range(LAYERS)]
    return dense_plan(
        schedule, ModelInfo(sites=names, heads=16, head_dim=128), tile=(8, 16), name="shapes of Infinity-2B"
    )


@pytest.fixture(scope="module")
def space(base: Plan) -> Space:
    return default_space(base)


def table(
    base: Plan, space: Space, name: str = "h100", flops: float = 1e13, moved: float = 1e10, **changes: Any
) -> Any:
    dtype = changes.pop("dtype", TARGET_DTYPE)
    rest = kernels.Work(flops, moved, launches=0)
    return target_costs(base, space, 2, kernels.find_gpu(name), rest, dtype, **changes)


def test_the_table_means_what_a_timed_one_does(base: Plan, space: Space) -> None:
    found = table(base, space)
    assert found.device == "H100 SXM (roofline)"
    targets = set(range(space.first, len(SIDES) + 1))
    assert set(found.dense) == {min(space.decisions)} | targets
    assert set(found.decide) == set(space.decisions)
    assert set(found.correcting) == set(space.decisions)
    assert set(found.mapping) == set(found.correction) == set(found.sparse) == targets
    assert found.extra == {}
    assert all(found.decide[scale] > found.dense[scale] for scale in space.decisions)
    for costs in (found.dense, found.mapping, found.correction):
        assert [costs[scale] for scale in sorted(costs)] == sorted(costs.values())


@pytest.mark.parametrize("name", [gpu.name for gpu in kernels.STATIC_GPUS])
def test_a_sparse_site_grows_with_what_it_keeps(base: Plan, space: Space, name: str) -> None:
    found = table(base, space, name)
    for scale in found.sparse:
        kept = [found.csla(scale, share) for share in (0.0, 0.05, 0.3, 1.0)]
        assert kept == sorted(kept) and kept[0] > 0 and kept[-1] > found.dense[scale]
        assert found.cs4a(scale, 0.2, True) > found.cs4a(scale, 0.2, False) > found.csla(scale, 0.2)
    assert found.cs4a(len(SIDES), 0.2, True) < found.dense[len(SIDES)]


def test_a_whole_generation_is_attention_and_the_rest(base: Plan, space: Space) -> None:
    gpu = kernels.find_gpu("h100")
    alone = table(base, space, flops=0, moved=0).dense_seconds
    site = kernels.SiteWork(2, 16, 128, TARGET_DTYPE)
    calls = [
        kernels.roofline_seconds(gpu, TARGET_DTYPE, site.dense(base.tokens(k), base.keys(k))) for k in range(1, 14)
    ]
    assert alone == pytest.approx(LAYERS * sum(calls))
    assert table(base, space, flops=1e15, moved=0).dense_seconds - alone == pytest.approx(1e15 / (0.75 * 989.5e12))
    assert table(base, space, flops=0, moved=1e12).dense_seconds - alone == pytest.approx(1e12 / 3.35e12)
    assert table(base, space, flops=1e15, moved=1e6).dense_seconds < table(base, space, "a100", 1e15, 1e6).dense_seconds
    assert table(base, space, dtype=torch.float32).dense_seconds > 3 * table(base, space).dense_seconds


def test_the_solver_finds_sparse_plans_with_it(base: Plan, space: Space) -> None:
    """Half of the squared error goes with every step up the budgets; the plan found takes less than dense."""
    windows = [WindowCandidate(number, sinks) for number in range(len(space.ladders)) for sinks in space.spans]
    budgets: dict[Candidate, float] = {window: 0.1 * (number + 1) for number, window in enumerate(windows)}
    errors: dict[Candidate, float] = dict.fromkeys(windows, 0.4)
    for decision in space.decisions:
        for setting in space.settings:
            for step, budget in enumerate(space.budgets):
                for first in (None, *space.firsts):
                    candidate = ColumnCandidate(decision, setting, budget, first)
                    budgets[candidate], errors[candidate] = budget, 0.2 / 2**step
    record = {
        "norm_seen": [1.0],
        "calls": [1.0],
        "errors": {name: [error] for name, error in errors.items()},
        "kept": {name: [share] for name, share in budgets.items()},
    }
    targets = range(space.first, len(SIDES) + 1)
    sites = {(scale, layer): record for scale in targets for layer in range(LAYERS)}
    sensitivity = Sensitivity((1.0,) * LAYERS, dict.fromkeys(targets, 1.0), dict.fromkeys(targets, 1.0))
    found = table(base, space)
    problem = cases(base, space, sites, found, sensitivity)
    answer = solve(problem, LAYERS, max_image_mse=0.5)
    assert answer is not None
    assert -found.dense_seconds < answer.seconds < 0
    assert plan_of(base, space, choice_of(space, answer)).planned_sites() > 0
    strict = solve(problem, LAYERS, max_image_mse=0.05)
    assert strict is not None and strict.seconds > answer.seconds


def test_what_does_not_suit_the_gpu_is_said(base: Plan, space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparvar.calibrate.measure import target_gpu as target

    lines = Lines()
    monkeypatch.setattr(target, "gpu_fit", lambda *_: kernels.GpuFit(("column_sums: spills registers",), 12.3))
    table(base, space, progress=lines)
    compiled, note = lines.steps
    assert compiled == "compiled the attention kernels for H100 SXM once, in 12 s; nothing was run there"
    assert note == "note: column_sums: spills registers; the roofline does not count that"
    with pytest.raises(KernelError, match="dtype: must be one of"):
        table(base, space, dtype=torch.float64)


def test_flops_of_the_small_model_are_those_of_its_linear_layers_and_convolutions() -> None:
    model = tiny_model()
    rows, tokens, width, bits, images = 4, 130, 128, 8, 2  # two labels, both with CFG; 1+4+9+16+36+64 tokens
    block = 2 * rows * tokens * width * (3 * width + width + 4 * width + 4 * width)
    ends = 2 * rows * tokens * bits * width * 2  # word embedding and head
    modulation = 2 * rows * width * (6 * width + 2 * width)
    picture = 2 * images * 64 * bits * 48  # 48 pixels of a patch out of every token's bits
    convolutions = 0

    def count(layer: nn.Conv2d, _: object, out: Tensor) -> None:
        nonlocal convolutions
        convolutions += (
            2 * out.numel() * layer.in_channels // layer.groups * layer.kernel_size[0] * layer.kernel_size[1]
        )

    hooks = [part.register_forward_hook(count) for part in model.modules() if isinstance(part, nn.Conv2d)]
    plain = generate(model)
    for hook in hooks:
        hook.remove()
    images_seen = []
    work = work_outside_attention(model, lambda: images_seen.append(generate(model)), len(model.sides))
    assert convolutions > 0
    assert work.flops == 3 * block + ends + modulation + picture + convolutions
    assert work.bytes == 6 * 2 * sum(parameter.numel() for parameter in model.parameters())
    assert work_outside_attention(model, lambda: None, 6, torch.float32) == kernels.Work(
        0.0, 2 * work.bytes, launches=0
    )
    assert torch.equal(images_seen[0], plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Site(nn.Module):
    """Attention with a cache, written by hand or not; its projection gets rows that lie apart."""

    def __init__(self, written: bool) -> None:
        super().__init__()
        self.proj, self.written = nn.Linear(16, 16, bias=False), written

    def forward(self, x: Tensor) -> Tensor:
        apart = x.transpose(0, 1).contiguous().transpose(0, 1)  # makes a batched product of the projection
        x = self.proj(apart)
        if self.written:
            return torch.matmul(torch.matmul(x, x.transpose(1, 2)).softmax(-1), x)
        return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]


class Outer(nn.Module):
    """A site, and a product of activations outside of it."""

    def __init__(self, written: bool) -> None:
        super().__init__()
        self.site = Site(written)

    def forward(self, x: Tensor) -> Tensor:
        x = self.site(x)
        return torch.bmm(x, x.transpose(1, 2))


@pytest.mark.parametrize("written", [True, False], ids=["by hand", "by torch"])
@pytest.mark.parametrize("inference", [True, False])
def test_attention_of_sites_is_left_out_and_nothing_else(written: bool, inference: bool) -> None:
    model = Outer(written)
    batch, length, width = 3, 5, 16

    def draw() -> None:
        with torch.inference_mode(inference):
            model(torch.randn(batch, length, width))

    work = work_outside_attention(model, draw, 1)
    assert work.flops == 2 * batch * length * width * width + 2 * batch * length * length * width


def test_attention_that_is_no_site_is_counted() -> None:
    q, k = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 10, 8)
    work = work_outside_attention(nn.Linear(1, 1), lambda: F.scaled_dot_product_attention(q, k, k), 1)
    assert work.flops == 4 * 2 * 4 * 6 * 10 * 8


def test_a_draw_that_fails_leaves_no_hooks() -> None:
    model = Outer(True)
    with pytest.raises(RuntimeError, match="shape"):
        work_outside_attention(model, lambda: model(torch.randn(3, 5, 7)), 1)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert work_outside_attention(model, lambda: model(torch.randn(3, 5, 16)), 1).flops > 0
