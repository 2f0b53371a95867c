"""Tokens left out of blocks that hold two attentions, so that the sites are the self-attentions inside them."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sparvar
from sparvar.errors import SessionError
from sparvar.scale_plans import ModelInfo, Plan, dense_plan
from sparvar.zoo import ShapedVAR, shaped
from tests.conventions import SQUARE, TEXT, WIDE, Convention, Painter, painter
from tests.conventions import plan_for as plan_of_painter

SCHEDULE = ((1, 1), (2, 2), (3, 4), (6, 8), (8, 12))
KEEP = {4: 0.5, 5: 0.25}
SOURCE = 3


def plan_for(model: ShapedVAR, spans: list[tuple[int, int]], fill: str = "delta") -> Plan:
    names = [f"blocks.{number}.sa" for number in range(model.shape.depth)]
    plan = dense_plan(
        SCHEDULE, ModelInfo(sites=names, heads=model.shape.heads, head_dim=model.shape.head_dim), tile=(4, 4)
    )
    each = [{"first": first, "last": last, "keep": KEEP} for first, last in spans]
    return plan.replace(pruning={"score": "pivot", "fill": fill, "source": SOURCE, "spans": each})


def enlarge(x: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    grid = x.transpose(1, 2).reshape(x.shape[0], -1, *source)
    return F.interpolate(grid, size=target, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)


@torch.inference_mode()
def slow(model: ShapedVAR, spans: list[tuple[int, int]], seed: int) -> Tensor:
    """The model's own blocks on gathered tokens and rotations; skipped keys never enter its caches."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    width = model.shape.width
    condition, text = noise(2, 6, width) * 0.1, noise(2, model.shape.text, width)
    for block in model.blocks:
        block.sa.cached_k = block.sa.cached_v = None  # type: ignore[union-attr]
    saved: dict[int, Tensor] = {}
    for scale, grid in enumerate(SCHEDULE, start=1):
        rope, x = model._ropes[scale - 1], noise(1, grid[0] * grid[1], width).repeat(2, 1, 1)
        layer = 0
        while layer < model.shape.depth:
            last = dict(spans).get(layer, layer)
            before, kept = x, None
            if scale in KEEP and layer in dict(spans):
                far = (x - x.mean(1, keepdim=True)).square().sum(-1).mean(0)
                kept = far.sort(descending=True, stable=True).indices[: round(KEEP[scale] * x.shape[1])].sort().values
                x = x[:, kept]
            for number in range(layer, last + 1):
                x = model.blocks[number](x, condition, rope if kept is None else rope[:, kept], text)
            if kept is not None:
                whole = before + enlarge(saved[layer], SCHEDULE[SOURCE - 1], grid)
                whole[:, kept] = x
                x = whole
            elif scale == SOURCE:
                saved[layer] = x - before
            layer = last + 1
    for block in model.blocks:
        block.sa.cached_k = block.sa.cached_v = None  # type: ignore[union-attr]
    return x


@pytest.mark.parametrize("spans", [[(0, 2)], [(1, 2)], [(0, 0), (2, 2)]], ids=str)
def test_against_the_models_own_blocks(spans: list[tuple[int, int]]) -> None:
    model = shaped("tiny", SCHEDULE)
    expected = slow(model, spans, seed=3)
    sparvar.compile(model, plan_for(model, spans), inner="eager")
    found = model.generate(seed=3)
    again = model.generate(seed=3)
    sparvar.detach(model)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found, again)


@pytest.mark.parametrize("inner", ["eager", "inductor"])
def test_blocks_with_cross_attention_as_one_graph(inner: str) -> None:
    """With grain "block" norms, cross-attention and MLP are in the graph; its text length is, too."""
    model = shaped("tiny", SCHEDULE)
    expected = slow(model, [(0, 2)], seed=3)
    sparvar.compile(model, plan_for(model, [(0, 2)]), inner=inner, grain="block")
    found = model.generate(seed=3)
    attachment = sparvar.attachment_of(model)
    assert attachment is not None and not attachment.around
    assert [site.wrapped for site in attachment.sites] == ["blocks.0", "blocks.1", "blocks.2"]
    sparvar.detach(model)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_model_that_changes_tokens_between_blocks_is_found_out() -> None:
    class Changing(ShapedVAR):
        def generate(self, *args: object, **kwargs: object) -> Tensor:
            hook = self.blocks[1].register_forward_pre_hook(lambda _, given: (given[0] + 1.0, *given[1:]))
            try:
                return super().generate(*args, **kwargs)  # type: ignore[arg-type]
            finally:
                hook.remove()

    model = Changing(shaped("tiny").shape, SCHEDULE).eval()
    sparvar.compile(model, plan_for(model, [(0, 2)]), inner="eager")
    with pytest.raises(SessionError, match="the model changes its tokens between blocks"):
        model.generate(seed=3)
    sparvar.detach(model)
    sparvar.compile(model, plan_for(model, [(0, 0), (2, 2)]), inner="eager")
    assert model.generate(seed=3).isfinite().all()
    sparvar.detach(model)


class Counting(ShapedVAR):
    """A model whose tensors count their writes, as they do outside of inference mode."""

    through = torch.no_grad()(inspect.unwrap(ShapedVAR.through))
    generate = torch.no_grad()(inspect.unwrap(ShapedVAR.generate))


@pytest.mark.parametrize("conditional", [False, True], ids=["tokens", "rows"])
def test_a_model_that_writes_into_its_tokens_between_blocks_is_found_out(conditional: bool) -> None:
    model = Counting(shaped("tiny").shape, SCHEDULE).eval()
    plan = plan_for(model, [(0, 2)])
    if conditional:
        plan = plan.replace(pruning=None, guidance={"conditional_from": 4, "fill": "copy"})
    sparvar.compile(model, plan, inner="eager")
    assert model.generate(seed=3).isfinite().all()
    model.blocks[1].register_forward_pre_hook(lambda _, given: (given[0].add_(1.0), *given[1:]))
    with pytest.raises(SessionError, match="got the same tensor, written in place: the model changes its tokens"):
        model.generate(seed=3)
    sparvar.detach(model)


def test_an_argument_that_is_written_between_blocks_is_gathered_again() -> None:
    images = []
    for in_place in (False, True):
        torch.manual_seed(0)
        model = Counting(shaped("tiny").shape, SCHEDULE).eval()
        for block in model.blocks[1 : 2 if in_place else 3]:
            block.register_forward_pre_hook(
                lambda _, given, write=in_place: (*given[:2], given[2].add_(0.1) if write else given[2] + 0.1, given[3])
            )
        sparvar.compile(model, plan_for(model, [(0, 2)]), inner="eager")
        images.append(model.generate(seed=3))
        sparvar.detach(model)
    assert torch.equal(*images)


@pytest.mark.parametrize("fill", ["output", "previous", "delta"])
def test_a_model_that_writes_into_what_a_span_gave(fill: str) -> None:
    """What later scales take from the span is what it gave, not what the model made of it (Infinity's levels)."""
    images = []
    for add in (lambda x: x + 1.0, lambda x: x.add_(1.0)):
        model = shaped("tiny", SCHEDULE)
        model.blocks[1].register_forward_pre_hook(lambda _, given, add=add: (add(given[0]), *given[1:]))  # type: ignore[misc]
        sparvar.compile(model, plan_for(model, [(0, 0), (2, 2)], fill), inner="eager")
        images.append(model.generate(seed=3))
        sparvar.detach(model)
    assert torch.equal(*images)


def test_a_block_that_is_told_the_schedule_by_position_finds_its_plan() -> None:
    """The block's own signature says what its arguments are, not that of the attention inside it."""
    model = painter(Convention(cross=True))
    span = {"first": 0, "last": 2, "keep": {5: 0.5}}
    pruning = {"score": "pivot", "fill": "delta", "source": 3, "spans": [span]}
    plans = [
        plan_of_painter(model, schedule, name=label).replace(pruning=pruning)
        for label, schedule in (("square", SQUARE), ("wide", WIDE))
    ]
    sparvar.compile(model, plans, inner="eager")
    attachment = sparvar.attachment_of(model)
    assert attachment is not None and attachment.around
    with torch.no_grad():
        for block in model.blocks:
            block.sa.kv_caching(True)  # type: ignore[operator, union-attr]
        model.blocks[0](model.start.expand(2, 1, -1), Painter._rope(1, 1), torch.zeros(2, 7, TEXT), WIDE, 0)
    assert attachment.plan.name == "wide"
