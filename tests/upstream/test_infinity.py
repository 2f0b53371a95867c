"""Infinity as published: its schedules, aspect ratios, guidance and text, through ``autoregressive_infer_cfg``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparvar.errors import SparvarError
from tests.upstream import stand_ins
from tests.upstream.infinity_models import infinity, schedule, text
from tests.upstream.support import (
    Case,
    assert_planned,
    assert_same,
    attached,
    expected_graphs,
    forget_graphs,
    made_graphs,
)

FAMILY = "Infinity"
pytestmark = pytest.mark.upstream
HALF = {"device_type": "cpu", "dtype": torch.bfloat16}


@pytest.fixture(scope="module")
def case() -> Case:
    return infinity()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("cfg_layer", [0, -2])
def test_dense_plan_changes_nothing(case: Case, half: bool, cfg_layer: int) -> None:
    # Attention modules are compiled, not blocks, so that the model's own compiled norm is in both runs.
    with torch.autocast(**HALF, enabled=half):
        expected = case.generate(cfg_layer=cfg_layer)
        with attached(case, case.plan(dense=True)):
            assert_same(case.generate(cfg_layer=cfg_layer), expected)
            assert_planned(case.model, case.plan(dense=True))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("ratio", "pixels"), [(1.0, "0.06M"), (1.0, "0.25M"), (1.5, "0.25M"), (0.666, "0.25M"), (2.5, "0.06M")]
)
def test_sparse_plan_rewrites_every_planned_site(ratio: float, pixels: str, half: bool) -> None:
    model = infinity(ratio, pixels)
    plan = model.plan()
    with torch.autocast(**HALF, enabled=half):
        expected = model.generate()
        with attached(model, plan):
            found = model.generate()
            assert_planned(model.model, plan)
    assert plan.decision_scale is not None
    before = plan.decision_scale - 1
    assert_same(found[:before], expected[:before])
    # Cross-attention computes in bf16 even in an fp32 model, so that a last digit of the deciding attention grows.
    assert_same(found[before : before + 1], expected[before : before + 1], rtol=2e-2)
    assert not torch.equal(found[-1], expected[-1])


@pytest.mark.parametrize("pixels", ["0.60M", "1M"])
def test_large_schedules(pixels: str) -> None:
    model = infinity(1.0, pixels, depth=3, heads=1, head_dim=64, chunks=3)
    plan = model.plan(tile=(8, 16))
    with attached(model, plan):
        found = model.generate()
        assert_planned(model.model, plan)
    assert all(x.isfinite().all() for x in found)


def test_cross_attention_is_left_alone(case: Case) -> None:
    with attached(case) as attachment:
        case.generate()
        assert [site.wrapped for site in attachment.sites] == case.sites
        assert not any("varlen" in report.text for report in attachment.reports)


def test_later_generations_make_no_graphs(case: Case) -> None:
    scales = len(case.schedule)
    with attached(case):
        first = case.generate()
        made = len(made_graphs(case.model))
        case.generate(seed=5, prompt=text([23], seed=2))
        case.generate(prompt=text([3]), negative=text([11], seed=4))
        case.generate(cfg=[4.0] * (scales - 3) + [1.0] * 3)
        assert_same(case.generate(), first)
        assert len(made_graphs(case.model)) == made


def test_no_guidance_and_a_batch_of_prompts_make_their_graphs_once(case: Case) -> None:
    plan = case.plan()
    prompts = text([5, 9])
    with attached(case, plan):
        for _ in range(2):
            case.generate()  # two rows: one prompt, guided
            case.generate(prompt=prompts)  # four rows
            case.generate(cfg=1.0)  # one row
        assert len(made_graphs(case.model)) == 3 * len(expected_graphs(plan))


def test_a_ratio_and_its_transpose_are_told_apart() -> None:
    """Their scales have equal numbers of tokens; only the schedule in the call tells which grid it is."""
    model = infinity(1.5, "0.25M")
    wide = schedule(0.666, "0.25M")
    grids = [(h, w) for _, h, w in wide]
    with attached(model, model.plan(schedule=grids)) as attachment:
        try:
            model.generate()
        except SparvarError as refusal:
            assert "schedule" in str(refusal)
        else:
            assert attachment.last is not None and list(attachment.last.plan.schedule) == list(model.schedule)
        model.generate(scales=wide)
        assert attachment.last is not None and list(attachment.last.plan.schedule) == grids


def _cache_bytes(model: torch.nn.Module, sites: list[str]) -> int:
    """Bytes of the memory behind all caches: spare capacity counts, shared buffers count once."""
    found: dict[int, int] = {}
    for name in sites:
        attention = model.get_submodule(name)
        for cache in (attention.cached_k, attention.cached_v):
            if isinstance(cache, Tensor):
                storage = cache.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def _peak_cache_bytes(case: Case) -> int:
    peak = 0

    def watch(*_: object) -> None:
        nonlocal peak
        peak = max(peak, _cache_bytes(case.model, case.sites))

    handle = case.model.get_submodule("head").register_forward_hook(watch)
    try:
        case.generate()
    finally:
        handle.remove()
    return peak


def test_cache_under_autocast_is_two_thirds_of_the_models_own(case: Case) -> None:
    """Upstream keeps keys in fp32 and values in bf16; attention rounds the keys to bf16 whenever it reads them."""
    with torch.autocast(**HALF):
        own = _peak_cache_bytes(case)
        with attached(case):
            ours = _peak_cache_bytes(case)
    assert ours <= 0.67 * own, f"{ours} bytes where the model's own cache has {own}"


def test_torch_compile_by_name_with_inductor_and_an_image() -> None:
    model = infinity(depth=3, chunks=3)
    plan = model.plan()
    forget_graphs()
    compiled = torch.compile(model.model, backend="sparvar", options={"plan": plan})
    found = model.generate(image=True)
    assert_planned(compiled, plan)  # type: ignore[arg-type]
    assert found[-1].shape == (1, 256, 256, 3)


def test_the_flash_attn_of_the_docs_computes_what_the_package_does() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models" / "infinity.md").read_text()
    code = next(block for block in page.split("```python\n") if "flash_attn_varlen" in block).split("```")[0]
    ours: dict[str, Any] = {}
    exec(code, ours)
    q, kv = torch.randn(10, 2, 32), torch.randn(9, 2, 2, 32)
    starts_q, starts_k = torch.tensor([0, 5, 10], dtype=torch.int32), torch.tensor([0, 3, 9], dtype=torch.int32)
    given = (q.bfloat16(), kv.bfloat16(), starts_q, starts_k, 5, 6)
    found = ours["flash_attn_varlen_kvpacked_func"](*given, softmax_scale=0.2)
    expected = stand_ins.flash_attn_varlen_kvpacked_func(*given, softmax_scale=0.2)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
