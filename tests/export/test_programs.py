"""Programs traced from a model, run one after the other by torch: the in-process path must come out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sparvar
from sparvar.errors import CaptureError, OptionError, PlanError
from sparvar.export import family_of
from sparvar.export.blocks import trace_blocks
from sparvar.export.capture import all_dense, record_blocks
from sparvar.export.golden import golden_inputs, run_traced
from sparvar.export.programs import Generation
from sparvar.export.sites import column_sets, interface, kind_of
from sparvar.scale_plans import ModelInfo, Plan, default_plan
from sparvar.zoo.model import LandscapeVAR
from tests.export.small import SIDES, plan_for
from tests.export.small import build as small_model


def traced(model: LandscapeVAR, plan: Plan, images: int = 1, **settings: Any) -> Generation:
    family = family_of(model, images, **settings)
    return trace_blocks(record_blocks(family, plan, golden_inputs(family, {})))


def in_process(made: Generation, plan: Plan, seed: int) -> torch.Tensor:
    """The same image by way of `sparvar.compile`."""
    model = made.family.model
    sparvar.compile(model, plan, inner="eager")
    try:
        return made.family.generate(golden_inputs(made.family, {}), seed)
    finally:
        sparvar.detach(model)


@pytest.mark.parametrize(
    ("changes", "images"),
    [
        ({"output_correction": True}, 1),
        pytest.param({}, 1, marks=pytest.mark.slow),
        pytest.param({}, 2, marks=pytest.mark.slow),
        pytest.param({"index_map": "footprint", "sink_scales": 1, "column_sum_stride": 2}, 1, marks=pytest.mark.slow),
        pytest.param({"cs4a": {3: {"budget": 0.7}, 4: {"budget": 0.2}}}, 1, marks=pytest.mark.slow),
    ],
)
def test_programs_give_the_image_of_the_in_process_path(changes: dict[str, Any], images: int) -> None:
    model = small_model()
    plan = plan_for(model, **changes)
    made = traced(model, plan, images)
    wanted = in_process(made, plan, 3)
    image = run_traced(made, golden_inputs(made.family, {}), 3)
    assert image.shape == (images, 3, 24, 24)
    torch.testing.assert_close(image, wanted, rtol=0, atol=0)


@pytest.mark.slow
def test_other_ratios_of_an_image() -> None:
    model = small_model()
    schedule = ((1, 1), (2, 3), (4, 5), (5, 8))
    own = plan_for(model)
    plan = own.replace(schedule=schedule)
    made = traced(model, plan, scale_schedule=schedule)
    image = run_traced(made, golden_inputs(made.family, {}), 1)
    assert image.shape == (1, 3, 20, 32)
    torch.testing.assert_close(image, in_process(made, plan, 1), rtol=0, atol=0)


def test_one_program_per_scale_and_kind() -> None:
    model = small_model()
    plan = plan_for(model)
    made = traced(model, plan)
    blocks = [name for name, program in made.programs.items() if program.kind in ("dense", "decide", "cs4a", "csla")]
    assert blocks == [
        "scale01-dense",
        *("scale02-dense", "scale02-decide"),
        *("scale03-dense", "scale03-cs4a", "scale03-csla"),
        *("scale04-dense", "scale04-cs4a", "scale04-csla"),
    ]
    assert len(made.programs) == len(blocks) + len(SIDES) + 2
    calls = [(step.program, step.layers) for step in made.steps if step.layers is not None]
    assert calls[:3] == [("scale01-dense", (0, 1, 2)), ("scale02-dense", (0,)), ("scale02-decide", (1,))]


@pytest.mark.slow
def test_depth_adds_calls_but_no_programs() -> None:
    from tests.tiny import tiny_model

    model = tiny_model(SIDES, depth=5)
    short = plan_for(small_model())
    facts = {**short.model.model_dump(), "sites": sites(5), "fingerprint": ""}
    plan = short.replace(model=facts, layers=["dense", "cs4a", "cs4a", "csla", "csla"])
    made = traced(model, plan)
    assert len(made.programs) == len(traced(small_model(), plan_for(small_model())).programs)
    assert ("scale04-cs4a", (1, 2)) in [(step.program, step.layers) for step in made.steps]
    torch.testing.assert_close(
        run_traced(made, golden_inputs(made.family, {}), 2), in_process(made, plan, 2), rtol=0, atol=0
    )


@pytest.mark.slow
def test_layers_that_dynamo_tells_apart_share_a_graph() -> None:
    """As where upstream's first layer alone has no stochastic depth: another type, and the same operations."""

    class Same(torch.nn.Linear):
        pass

    model = small_model()
    model.blocks[0].attn.proj.__class__ = Same
    made = traced(model, plan_for(model))
    assert len(made.programs) == len(traced(small_model(), plan_for(small_model())).programs)


def sites(depth: int) -> list[str]:
    return [f"blocks.{layer}.attn" for layer in range(depth)]


def test_every_weight_is_an_input_and_stored_once() -> None:
    model = small_model()
    made = traced(model, plan_for(model))
    pointers = [tensor.data_ptr() for tensor in made.weights.values()]
    assert len(set(pointers)) == len(pointers)
    block = sum(parameter.numel() for parameter in model.blocks[0].parameters())
    stored = sum(tensor.numel() for name, tensor in made.weights.items() if name.startswith("layers.0."))
    assert stored == block
    for program in made.programs.values():
        assert not program.exported.constants, program.name
        assert not program.exported.state_dict, program.name


def test_operations_kept_follow_the_plan() -> None:
    model = small_model()
    plan = plan_for(model)
    made = traced(model, plan)
    for name, program in made.programs.items():
        if program.kind in ("cs4a", "csla"):
            queries, keys = plan.tokens(program.scale), plan.keys(program.scale)
            attention = 4 * 2 * 2 * queries * keys * 64  # rows, heads, head_dim; scores and values
            kept = plan.kept_share(program.scale, program.kind)
            assert kept is not None
            assert program.dense_flops - program.flops == pytest.approx(attention * (1 - kept), abs=1), name
        else:
            assert program.flops == program.dense_flops


def test_an_all_dense_plan_has_dense_programs_alone() -> None:
    model = small_model()
    plan = all_dense(plan_for(model))
    made = traced(model, plan)
    kinds = {program.kind for program in made.programs.values()}
    assert kinds == {"begin", "dense", "leave", "decode"}
    torch.testing.assert_close(
        run_traced(made, golden_inputs(made.family, {}), 4), in_process(made, plan, 4), rtol=0, atol=1e-6
    )


def test_a_plan_for_another_schedule_is_refused() -> None:
    model = small_model()
    plan = plan_for(model).replace(schedule=((1, 1), (2, 2), (4, 4), (7, 7)))
    family = family_of(model)
    with pytest.raises(PlanError, match="schedule"):
        record_blocks(family, plan, golden_inputs(family, {}))


def test_blocks_that_differ_are_refused() -> None:
    model = small_model()
    model.blocks[1].attn.max_scale_log = 1.0  # type: ignore[union-attr]
    family = family_of(model)
    recorded = record_blocks(family, plan_for(model), golden_inputs(family, {}))
    with pytest.raises(CaptureError, match="share one graph"):
        trace_blocks(recorded)


def test_names_that_pass_between_programs() -> None:
    plan = plan_for(small_model())
    assert column_sets(plan) == sorted({plan.source_columns(3), plan.source_columns(4)})
    given = interface(plan, "decide", 2).gives
    for scale in (3, 4):
        assert set(interface(plan, "cs4a", scale).takes) <= set(given)
    assert kind_of(plan, 0, 1) == "dense"
    assert kind_of(plan, 2, 1) == "decide" and kind_of(plan, 3, 2) == "csla"


def test_examples_of_inputs() -> None:
    family = family_of(small_model(), 3)
    assert golden_inputs(family, {})["labels"].tolist() == [0, 1, 2]
    with pytest.raises(OptionError, match="labels"):
        golden_inputs(family, {"labels": torch.zeros(2)})
    with pytest.raises(OptionError, match="among labels, cfg, temperature"):
        golden_inputs(family, {"text": torch.zeros(2)})


@pytest.mark.slow
def test_default_plans_export_too() -> None:
    model = small_model()
    plan = default_plan(
        [(side, side) for side in SIDES],
        ModelInfo(sites=sites(3), heads=2, head_dim=64),
        tile=(2, 3),
        cs4a_share=1.0,
        name="default",
    )
    made = traced(model, plan)
    torch.testing.assert_close(
        run_traced(made, golden_inputs(made.family, {}), 5), in_process(made, plan, 5), rtol=0, atol=0
    )
