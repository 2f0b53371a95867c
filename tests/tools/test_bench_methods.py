"""`sparvar bench methods`: the published methods as plans, on the shipped model and on random weights of a shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import sparvar
from sparvar.scale_plans import ModelInfo, Plan, dense_plan, infinity_schedules
from sparvar.tools.bench.published_methods import COMPRESSED, SKIPPING, Method, compressed, published
from tests.plan_reference import generate as slow
from tests.tiny import tiny_model
from tests.tools.conftest import Tiny, run_command

SQUARE = ("1M/1", "0.60M/1", "0.25M/1", "0.06M/1")


def base_of(schedule: Any, layers: int = 6) -> Plan:
    return dense_plan(
        schedule, ModelInfo(sites=[f"blocks.{number}.attn" for number in range(layers)], heads=2, head_dim=64)
    )


def every(base: Plan, skipping: bool = True) -> dict[str, Method]:
    selectivity = [
        {scale: 0.1 * (layer + 1) for scale in range(2, base.scales + 1)} for layer in range(len(base.layers))
    ]
    variance = [[0.1, 0.2 + layer] for layer in range(len(base.layers))]
    found = published(base, skipping) + compressed(base, selectivity, variance, skipping)
    return {method.name: method for method in found}


def touched(plan: Plan) -> set[int]:
    """The scales at which a plan leaves out columns, tokens or rows."""
    scales = set(plan.cs4a) | set(plan.csla)
    for span in plan.pruning.spans if plan.pruning is not None else ():
        scales |= set(span.keep)
    first = plan.guidance.conditional_from if plan.guidance is not None else plan.drawn + 1
    return scales | set(range(first, plan.drawn + 1))


@pytest.mark.parametrize("layers", [1, 2, 10])
@pytest.mark.parametrize("name", SQUARE)
def test_every_method_also_skips_and_is_legal(name: str, layers: int) -> None:
    base = base_of(infinity_schedules()[name], layers)
    methods = every(base)
    alone = [each for each in methods if not each.startswith("skip last") and not each.endswith(SKIPPING)]
    assert len(alone) == 10 + len(COMPRESSED)
    assert {f"{each}{SKIPPING}" for each in alone} | {"skip last 1", "skip last 2"} == set(methods) - set(alone)
    assert not [problem for method in methods.values() for problem in method.plan.check()]
    for each in alone:
        plan, short = methods[each].plan, methods[f"{each}{SKIPPING}"].plan
        assert plan.skip is None and short.drawn == base.scales - 2
        assert max(touched(plan) | {0}) <= base.scales and max(touched(short) | {0}) <= short.drawn
        assert not touched(plan) or max(touched(short)) == short.drawn, "the last drawn scale is the last of the rule"
        assert short.digest != plan.digest and short.name != plan.name


def test_skipping_moves_every_rule_by_two_scales() -> None:
    methods = every(base_of(infinity_schedules()["1M/1"]))
    sparse = methods["SparVAR, skipping"].plan
    assert (sparse.decision_scale, set(sparse.cs4a), set(sparse.csla)) == (9, {10, 11}, {10, 11})
    assert sparse.cs4a[11].window == methods["SparVAR"].plan.cs4a[13].window
    assert methods["CSLA alone, skipping"].plan.csla[11].windows == {7: 1, 8: 1, 9: 3, 10: 5, 11: 7}
    entropy, random = methods["ToProVAR, skipping"].plan.pruning, methods["random tokens, skipping"].plan.pruning
    assert entropy is not None and entropy.source == 8 and set(entropy.spans[0].keep) == {9, 10, 11}
    whole = methods["ToProVAR"].plan.pruning
    assert whole is not None and entropy.spans[0].keep[11] == pytest.approx(whole.spans[0].keep[13], abs=0.01)
    assert random is not None and random.source == 9 and random.spans[0].keep == {10: 0.5, 11: 0.25}
    assert methods["conditional last 3, skipping"].plan.conditional(9)
    short = methods["sinks and local, KV / 8, skipping"].plan
    assert short.kv is not None and max(short.kv.keep) == 10
    assert short.held(10, 0) == short.keys(11) // 8


def test_methods_without_skipping_are_as_before() -> None:
    base = base_of(infinity_schedules()["1M/1"])
    assert not [name for name in every(base, skipping=False) if "skip" in name]
    plan = every(base, skipping=False)["SparVAR"].plan
    assert (plan.decision_scale, plan.sink_scales) == (11, 5)


@pytest.mark.parametrize("name", ["SparVAR", "ToProVAR", "SparseVAR", "conditional last 1", "HACK, KV / 8"])
def test_a_skipping_method_against_the_slow_reference(name: str) -> None:
    model = tiny_model((1, 2, 3, 4, 5, 6, 8))
    plan = every(base_of(model.schedule, len(model.blocks)))[f"{name}{SKIPPING}"].plan
    exact, margin = slow(model, "mountain", 50, plan)
    assert margin > 1e-5, "another seed, then"
    sparvar.compile(model, plan, inner="eager")
    image = model.generate(["mountain"], seed=50)
    torch.testing.assert_close(image, exact, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_on_the_shipped_models_classes(invoke: Any, tiny: Tiny, tmp_path: Path) -> None:
    names = ("FastVAR", "skip last 1", "SparVAR, skipping", "HACK, KV / 8", "mine")
    only = [part for name in names for part in ("--only", name)]
    given = ["--weights", tiny.weights, "--plan", f"mine={tiny.path}", "--inner", "eager", "--seeds", "1", *only]
    done = invoke("bench", "methods", "--json", tmp_path / "out.json", *given)
    assert done.exit_code == 0, done.stderr
    rows = {row["method"]: row for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
    assert list(rows) == ["dense", *names]
    assert rows["dense"]["block_flops_kept"] == 1.0
    assert rows["skip last 1"]["block_flops_kept"] < rows["FastVAR"]["block_flops_kept"] < 1
    assert rows["SparVAR, skipping"]["block_flops_kept"] < rows["skip last 1"]["block_flops_kept"]
    assert rows["skip last 1"]["skips"] and not rows["FastVAR"]["skips"]
    assert all(0 < row["ssim_mean"] <= 1 for name, row in rows.items() if name != "dense")
    assert 0 < rows["HACK, KV / 8"]["bytes"] < rows["dense"]["bytes"]
    assert "block FLOPs" in done.stdout


@pytest.mark.slow
def test_on_a_shape_as_a_user_runs_it(tmp_path: Path) -> None:
    """Blocks with guidance and cross-attention; scales are skipped, too, though no family knows this model."""
    names = ("SparVAR", "conditional last 1", "skip last 2", "ToMe, skipping", "HACK, KV / 8")
    only = [part for name in names for part in ("--only", name)]
    given = ["--shape", "tiny", "--blocks", "2", "--size", "0.06M", "--inner", "eager", "--seeds", "1", *only]
    done = run_command("bench", "methods", *given, "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["settings"]["shape"] == {"name": "tiny", "width": 128, "depth": 2, "heads": 2, "text": 8}
    assert len(result["settings"]["schedule"]) == 7
    rows = {row["method"]: row for row in result["rows"]}
    assert list(rows) == ["dense", *names]
    for name, row in rows.items():
        assert row["promised_speedup"] == pytest.approx(1 / row["block_flops_kept"])
        assert row["seconds"]["n"] == 1 and row["bytes"] > 0
        assert name == "dense" or 0 <= row["relative_error_mean"] <= row["relative_error_most"] < 2
    assert rows["skip last 2"]["relative_error_mean"] == 0, "scales that are drawn are the dense ones"
    assert 0 < rows["SparVAR"]["relative_error_mean"] < 0.05, "attention of random weights is nearly uniform"
    assert rows["conditional last 1"]["block_flops_kept"] < 0.8
    assert rows["ToMe, skipping"]["block_flops_kept"] < 0.5 * rows["skip last 2"]["block_flops_kept"]
    assert "promised" in done.stdout and "PSNR" not in done.stdout


@pytest.mark.slow
def test_code_draws_the_rest_with_a_smaller_model(invoke: Any, tiny: Tiny, tmp_path: Path) -> None:
    """With itself as the refiner it draws the same images, and its work is counted twice where both run."""
    names = ("ToMe", "CoDe", "CoDe, skipping")
    only = [part for name in names for part in ("--only", name)]
    given = [
        "--weights",
        tiny.weights,
        "--refiner",
        tiny.weights,
        "--handover",
        "9",
        "--inner",
        "eager",
        "--seeds",
        "1",
    ]
    done = invoke("bench", "methods", *given, *only, "--json", tmp_path / "out.json")
    assert done.exit_code == 0, done.stderr
    rows = {row["method"]: row for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
    assert list(rows) == ["dense", *names]
    both = rows["CoDe"]
    assert both["source"] == "CoDe, handover at 9 of 13" and both["psnr_db_mean"] is None, "equal"
    drafted = both["block_flops_kept"] - 1
    assert 0 < drafted < 0.3, "nine scales twice"
    short = rows["CoDe, skipping"]
    assert short["skips"] and drafted < short["block_flops_kept"] < 0.6
    assert 0 < short["psnr_db_mean"] < 60


@pytest.mark.slow
def test_code_on_shapes(invoke: Any, tmp_path: Path) -> None:
    names = ("CoDe", "CoDe, skipping")
    only = [part for name in names for part in ("--only", name)]
    size = ["--size", "0.06M", "--blocks", "1", "--inner", "eager", "--seeds", "1"]
    done = invoke(
        "bench", "methods", "--shape", "infinity-125m", "--refiner", "tiny", *size, *only, "--json", tmp_path / "out"
    )
    assert done.exit_code == 0, done.stderr
    rows = {row["method"]: row for row in json.loads((tmp_path / "out").read_text())["rows"]}
    assert [rows[name]["source"] for name in names] == ["CoDe, handover at 6 of 7", "CoDe, handover at 4 of 5"]
    assert "relative_error_mean" not in rows["CoDe"], "another model's output"
    assert rows["CoDe, skipping"]["block_flops_kept"] < rows["CoDe"]["block_flops_kept"] < 0.7
    assert rows["CoDe"]["bytes"] > 0


@pytest.mark.slow
def test_a_shape_without_guidance_has_no_methods_that_leave_it_out(invoke: Any, tmp_path: Path) -> None:
    names = ("ToMe", "sinks and local, KV / 8")
    only = [part for name in names for part in ("--only", name)]
    given = ["--shape", "tiny", "--blocks", "1", "--size", "0.06M", "--inner", "eager", "--seeds", "1", "--cfg", "1"]
    done = invoke("bench", "methods", *given, *only, "--json", tmp_path / "out.json")
    assert done.exit_code == 0, done.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["dense", *names]
    done = invoke("bench", "methods", *given, "--only", "conditional last 1")
    assert done.exit_code == 1
    assert "--only: must be one of SparVAR; CSLA alone; " in done.stderr


@pytest.mark.parametrize("text", ["mine", "=x.json", "mine="])
def test_refuses_plans_without_a_name(invoke: Any, text: str) -> None:
    assert invoke("bench", "methods", "--plan", text).exit_code == 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            ["--shape", "infinity"],
            "--shape: must be one of infinity-2b, infinity-8b, infinity-125m, tiny, got 'infinity'",
        ),
        (
            ["--shape", "tiny", "--blocks", "0"],
            "--blocks: must be between 1 and 3, the blocks of tiny, got 0; leave it out for 3",
        ),
        (["--shape", "tiny", "--blocks", "4"], "must be between 1 and 3, the blocks of tiny, got 4"),
        (["--shape", "tiny", "--size", "2M"], "--size: must be one of 0.06M, 0.25M, 0.60M, 1M, got '2M'"),
        (["--size", "1M"], "--size: must come with --shape, got it alone; add e.g. --shape infinity-2b"),
        (["--blocks", "2"], "--blocks: must come with --shape"),
        (
            ["--shape", "tiny", "--plan", "mine=landscape"],
            "--plan: must be for the shipped model, got it with --shape tiny; leave out --plan, or --shape",
        ),
        (["--shape", "tiny", "--weights", "folder"], "--weights: must be for the shipped model"),
        (
            ["--shape", "tiny", "--blocks", "1", "--size", "0.06M", "--only", "ToMee"],
            "--only: must be one of SparVAR; CSLA alone; ToProVAR;",
        ),
        (["--shape", "tiny", "--refiner", "large"], "--refiner: must be one of infinity-2b"),
        (["--handover", "3"], "--handover: must come with --refiner, got it alone; name the smaller model, too"),
        (
            ["--shape", "tiny", "--size", "0.06M", "--refiner", "tiny", "--handover", "7"],
            "--handover: must be a scale before the last drawn one, 1 to 6, got 7",
        ),
        (["--shape", "tiny", "--size", "0.06M", "--only", "CoDe"], "--only: must be one of SparVAR"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_bad_input(invoke: Any, given: list[str], expected: str) -> None:
    done = invoke("bench", "methods", "--inner", "eager", *given)
    assert done.exit_code == 1
    assert expected in " ".join(done.stderr.split())
