"""What the tests of all families share: a model with its way of generating, and plans for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import sparvar
from sparvar.backend import attachment_of
from sparvar.compiler.compiled_sites import site_graphs
from sparvar.models.fingerprint import fingerprint
from sparvar.runtime.attachment import Attachment
from sparvar.scale_plans import ModelInfo, Plan, default_plan, dense_plan

TILE = (4, 4)
"""Query tiles of small schedules; the default 8x16 is larger than their grids."""


@dataclass
class Case:
    """A public model with random weights, and its own generation method on stub inputs.

    Attributes:
        model: the model, unmodified.
        run: calls the model's generation method; keywords are the family's.
        schedule: (h, w) of every scale.
        sites: names of the self-attention modules in order of execution.
        heads, head_dim: of those modules.
        prefix: text tokens, which have a call of their own.
        dtype: of the parameters.
        vae: the tokenizer, where the model does not hold it.
    """

    model: nn.Module
    run: Callable[..., Tensor | None]
    schedule: Sequence[tuple[int, int]]
    sites: list[str]
    heads: int
    head_dim: int
    prefix: int = 0
    dtype: str = "float32"
    vae: nn.Module | None = None

    def generate(self, **changes: Any) -> list[Tensor]:
        """Logits of every scale, and the image or features where the method returns them."""
        with recorded_logits(self.model) as logits:
            result = self.run(**changes)
        return logits if result is None else [*logits, result]

    def plan(self, *, dense: bool = False, schedule: Sequence[tuple[int, int]] | None = None, **fields: Any) -> Plan:
        make = dense_plan if dense else default_plan
        model = ModelInfo(
            sites=tuple(self.sites),
            heads=self.heads,
            head_dim=self.head_dim,
            dtype=self.dtype,
            family=type(self.model).__name__,
            fingerprint=fingerprint(self.model),
        )
        return make(schedule or self.schedule, model, prefix=self.prefix, **{"tile": TILE, **fields})


@contextmanager
def recorded_logits(model: nn.Module) -> Iterator[list[Tensor]]:
    """Copies of what ``model.head`` returns, in order of its calls."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        seen.append(output.detach().float().clone())

    handle = model.get_submodule("head").register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def randomise(model: nn.Module, seed: int = 0, gain: float = 1.0) -> nn.Module:
    """Weights for which attention matters: published initialisations nearly close every block's residual."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "scale_mul" in name:  # log of the temperature of cosine attention
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                fan_in = parameter.shape[1:].numel()
                parameter.copy_(noise * (gain / fan_in**0.5))
            else:
                parameter.copy_(0.05 * noise + (1.0 if "norm" in name and "bias" not in name else 0.0))
    return model.eval().requires_grad_(False)


@contextmanager
def attached(case: Case, plan: Plan | None = None, **options: Any) -> Iterator[Attachment]:
    """sparvar on the case's model, with graphs of its own, run without an inner compiler unless told otherwise."""
    forget_graphs()
    sparvar.compile(case.model, case.plan() if plan is None else plan, **{"inner": "eager", **options})
    try:
        yield attachment(case.model)
    finally:
        sparvar.detach(case.model)


def forget_graphs() -> None:
    """Graphs of a schedule are shared by all models of a process; counting them takes a fresh start."""
    site_graphs.cache_clear()


def attachment(model: nn.Module) -> Attachment:
    found = attachment_of(model)
    assert found is not None, "sparvar is not attached"
    return found


def made_graphs(model: nn.Module) -> list[tuple[int, str]]:
    """(scale, kind) of every graph compiled so far."""
    return [(report.context.scale, report.context.kind) for report in attachment(model).reports]


def expected_graphs(plan: Plan) -> set[tuple[int, str]]:
    prefix = {(0, "dense")} if plan.prefix else set()
    return prefix | {
        (scale, plan.kind(scale, layer)) for scale in range(1, plan.scales + 1) for layer in range(len(plan.layers))
    }


def expected_sites(plan: Plan) -> Counter[str]:
    """How many self-attentions one generation must run as decide and as sparse."""
    kinds = (plan.kind(s, layer) for s in range(1, plan.scales + 1) for layer in range(len(plan.layers)))
    return Counter(kind for kind in kinds if kind != "dense")


def ran_sites(model: nn.Module) -> Counter[str]:
    last = attachment(model).last
    assert last is not None, "no generation has ended"
    return Counter(kind for kind in last.ran.values() if kind != "dense")


def assert_planned(model: nn.Module, plan: Plan) -> None:
    """The last generation ran every site as planned, with one graph per (scale, kind)."""
    assert ran_sites(model) == expected_sites(plan)
    made = made_graphs(model)
    assert len(made) == len(set(made)), f"graphs made twice: {sorted(x for x, n in Counter(made).items() if n > 1)}"
    assert set(made) == expected_graphs(plan)


def assert_same(found: list[Tensor], expected: list[Tensor], rtol: float = 1e-5) -> None:
    """Every output within ``rtol`` of the expected one's largest value."""
    assert [x.shape for x in found] == [x.shape for x in expected]
    for scale, (a, b) in enumerate(zip(found, expected, strict=True), start=1):
        error = ((a - b).abs().max() / b.abs().max().clamp_min(1e-12)).item()
        assert error <= rtol, f"output {scale} of {len(expected)} differs by {error:.2e}, relative"
