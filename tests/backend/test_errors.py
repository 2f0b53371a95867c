"""What a user reads when something does not fit. Every test shows the message."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparvar
from sparvar.errors import CaptureError, OptionError, PlanError, SessionError
from tests.tiny import generate, tiny_model, tiny_plan


def test_plan_for_another_model() -> None:
    plan = tiny_plan(tiny_model())
    other = tiny_model(depth=4)
    with pytest.raises(PlanError, match=r"be made for this LandscapeVAR \(fingerprint sha256:.*got one for tiny"):
        sparvar.compile(other, plan)


def test_plan_for_another_schedule_names_scale_and_tokens() -> None:
    model = tiny_model()
    schedule = [[1, 1], [2, 2], [3, 3], [4, 4], [5, 5], [8, 8]]
    sparvar.compile(model, tiny_plan(model, schedule=schedule), inner="eager")
    with pytest.raises(SessionError, match=r"scale 5 of 6: must have 25 tokens \(5x5\).*got 36"):
        generate(model)


def test_no_shipped_plan() -> None:
    with pytest.raises(PlanError, match="no shipped plan has the fingerprint"):
        sparvar.compile(tiny_model())


def test_unknown_option_suggests_the_near_one() -> None:
    model = tiny_model()
    with pytest.raises(OptionError, match=r"be one of plan, inner.*got 'iner'; did you mean 'inner'"):
        torch.compile(model, backend="sparvar", options={"plan": tiny_plan(model), "iner": "eager"})


@pytest.mark.parametrize(("name", "value"), [("inner", "tvm"), ("grain", "model"), ("strict", "yes"), ("plan", 3)])
def test_option_values(name: str, value: object) -> None:
    model = tiny_model()
    with pytest.raises(OptionError, match=f"option {name}: must be"):
        sparvar.compile(model, **{"plan": tiny_plan(model), name: value})  # type: ignore[arg-type]


def test_mode_is_not_taken() -> None:
    with pytest.raises(OptionError, match="mode: must not be given"):
        torch.compile(tiny_model(), backend="sparvar", mode="max-autotune")


def test_unknown_policy_and_missing_plan_file(tmp_path: Path) -> None:
    model = tiny_model()
    path = tmp_path / "plan.json"
    tiny_plan(model).save(path)
    path.write_text(path.read_text().replace('"csla"', '"cslb"'))
    with pytest.raises(PlanError, match="cslb"):
        sparvar.compile(model, path)
    with pytest.raises(PlanError, match="absent"):
        sparvar.compile(model, tmp_path / "absent.json")


def test_model_without_attention() -> None:
    plan = tiny_plan(tiny_model())
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(CaptureError, match="hold modules whose forward calls attention"):
        sparvar.compile(model, plan.replace(model=plan.model.model_copy(update={"fingerprint": ""})))


def test_model_compiled_already() -> None:
    model = tiny_model()
    plan = tiny_plan(model)
    with pytest.raises(CaptureError, match="not be compiled yet"):
        sparvar.compile(torch.compile(model), plan)  # type: ignore[arg-type]
    model.blocks[1].compile()
    with pytest.raises(CaptureError, match="not be compiled yet"):
        sparvar.compile(model, plan)


def test_mixed_devices() -> None:
    model = tiny_model()
    plan = tiny_plan(model)
    model.head.to("meta")
    with pytest.raises(CaptureError, match="be on one device, got cpu, meta"):
        sparvar.compile(model, plan)


def test_other_dtype_is_another_model() -> None:
    model = tiny_model()
    plan = tiny_plan(model)
    with pytest.raises(PlanError, match="be made for this"):
        sparvar.compile(model.double(), plan)


def test_compiling_a_function_is_refused() -> None:
    with pytest.raises(OptionError, match=r"be a torch\.nn\.Module"):
        sparvar.compile(tiny_model().generate)  # type: ignore[arg-type]


class Odd(nn.Module):
    """A site whose attention may not be made sparse."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.cached: Tensor | None = None
        self.qkv = nn.Linear(64, 192)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 1, 64).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fault != "cache":
            past = self.cached
            self.cached = torch.cat((k, v), dim=1) if past is None else torch.cat((past, torch.cat((k, v), dim=1)), 2)
            k, v = self.cached.chunk(2, dim=1)
        mask = torch.zeros(q.shape[2], k.shape[2]) if self.fault == "mask" else None
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).flatten(1, 2)


class Holder(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.attn = Odd(fault)

    @torch.no_grad()
    def run(self, sides: tuple[int, ...]) -> None:
        for side in sides:
            self.attn(torch.randn(1, side * side, 64))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("mask", "it has an attention mask"), ("cache", "not self-attention over the scales")],
)
def test_planned_site_that_cannot_be_rewritten_is_an_error_with_the_reason(fault: str, reason: str) -> None:
    model = Holder(fault)
    base = tiny_plan(tiny_model())
    plan = base.replace(
        model={"sites": ["attn"], "heads": 1, "head_dim": 64},
        layers=["csla"],
        cs4a={},
        decision_scale=None,
    )
    sparvar.compile(model, plan, inner="eager")
    with pytest.raises(CaptureError, match=f"no attention was rewritten.*{reason}"):
        model.run((1, 2, 3, 4, 6, 8))


def test_not_strict_warns_and_runs_dense() -> None:
    model = Holder("mask")
    base = tiny_plan(tiny_model())
    plan = base.replace(
        model={"sites": ["attn"], "heads": 1, "head_dim": 64}, layers=["csla"], cs4a={}, decision_scale=None
    )
    sparvar.compile(model, plan, inner="eager", strict=False)
    with pytest.warns(sparvar.SparvarWarning, match="must run sparse, as the plan says, got dense"):
        model.run((1, 2, 3, 4, 6, 8))
