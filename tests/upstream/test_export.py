"""Public models as programs: the images of the in-process path, from sparse plans; two of them compiled and run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sparvar
from sparvar.artefact import load, verify
from sparvar.evaluate.metrics import psnr
from sparvar.export import export_artefact, family_of
from sparvar.export.blocks import trace_blocks
from sparvar.export.capture import record_blocks
from sparvar.export.golden import differences, golden_inputs, run_traced
from sparvar.models import Family
from sparvar.scale_plans import Plan
from tests.upstream import hart_models, infinity_models, var_models
from tests.upstream.checkouts import family_imports
from tests.upstream.support import Case
from tests.upstream.test_families import HART_SIDES, SIDES, class_inputs, hart_inputs, text_inputs

pytestmark = pytest.mark.upstream

Made = tuple[Family, Plan, dict[str, Tensor]]


@pytest.fixture(scope="module", autouse=True)
def family() -> Iterator[None]:
    """Every test here imports its own family."""
    yield


def made(case: Case, inputs: Callable[[Family], dict[str, Tensor]], **settings: Any) -> Made:
    found = family_of(case.model, 1, **settings)
    return found, case.plan(schedule=found.schedule), inputs(found)


def var() -> Made:
    return made(var_models.var(SIDES, depth=4), class_inputs, top_k=20, top_p=0.9)


def flexvar() -> Made:
    case = var_models.flexvar(depth=4)
    return made(case, class_inputs, vqvae=case.vae, infer_patch_nums=SIDES)


def infinity() -> Made:
    case = infinity_models.infinity()
    settings = {"vae": case.vae, "scale_schedule": infinity_models.schedule(), "text_tokens": 6}
    return made(case, lambda family: text_inputs(family, (5,)), **settings)


def hart() -> Made:
    return made(hart_models.hart(HART_SIDES, depth=4), hart_inputs)


FAMILIES: dict[str, Callable[[], Made]] = {"VAR": var, "FlexVAR": flexvar, "Infinity": infinity, "hart": hart}


def in_process(family: Family, plan: Plan, inputs: dict[str, Tensor], seed: int) -> Tensor:
    sparvar.compile(family.model, plan, inner="eager")
    try:
        with torch.no_grad(), family.functional():
            return family.generate(inputs, seed)
    finally:
        sparvar.detach(family.model)


@pytest.mark.parametrize("name", FAMILIES)
def test_programs_give_the_image_of_the_in_process_path(name: str) -> None:
    with family_imports(name), hart_models.cuda_is_the_cpu() if name == "hart" else nullcontext():
        family, plan, inputs = FAMILIES[name]()
        assert plan.decision_scale is not None and {"cs4a", "csla"} & set(plan.layers)
        inputs = golden_inputs(family, inputs)
        programs = trace_blocks(record_blocks(family, plan, inputs))
        assert all(not program.exported.state_dict for program in programs.programs.values())
        image = run_traced(programs, inputs, 3)
        torch.testing.assert_close(image, in_process(family, plan, inputs, 3), rtol=0, atol=1e-3)


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in the order that does not depend on the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["VAR", "Infinity"])
def test_an_artefact(name: str, tmp_path: Path) -> None:
    with family_imports(name):
        family, plan, inputs = FAMILIES[name]()
        with one_thread():
            wanted = in_process(family, plan, inputs, 7)
        export_artefact(family, plan, tmp_path / "artefact", inputs=inputs)
        artefact = load(tmp_path / "artefact")
        recorded = golden_inputs(family, inputs)
        programs = trace_blocks(record_blocks(family, plan, recorded))
        found = differences(programs, artefact, recorded, 7)
    # Infinity rounds to bf16: where a sum falls between two of its numbers, the last digit of fp32 decides which.
    most = 1e-3 if name == "Infinity" else 1e-4
    assert set(found) == set(artefact.programs) and max(found.values()) < most, found
    report = verify(tmp_path / "artefact")
    assert report.ok, report.problems
    given = {spec.name: inputs[spec.name] for spec in family.inputs if spec.kind == "tensor"}
    first = (inputs["labels"].tolist(),) if "labels" in inputs else ()
    numbers = {spec.name: inputs[spec.name].item() for spec in family.inputs if spec.kind == "number"}
    image = artefact.generate(*first, seed=7, **given, **numbers)
    if name == "Infinity":
        # It computes in bf16: with one thread more its own image has 46 dB of what it was, as sampled bits flip.
        assert report.model_psnr_db is None and psnr(image, wanted) >= 45
    else:
        torch.testing.assert_close(image, wanted, rtol=0, atol=1e-3)
