"""Every way in which published models call attention, on a small model of our own."""

from __future__ import annotations

import contextlib
import copy
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sparvar
from sparvar.backend import attachment_of
from sparvar.compiler.compiled_sites import site_graphs
from sparvar.errors import CaptureError, PlanError, SessionError, SparvarWarning
from sparvar.runtime.attachment import Attachment
from sparvar.scale_plans import Plan
from tests.conventions import SQUARE, TALL, TEXT, WIDE, Convention, Painter, painter, plan_for

CALLS = ["sdpa", "sdpa_blhc", "flash", "xformers", "written"]
WAYS = [
    *(Convention(call) for call in CALLS),
    Convention(groups=2),
    Convention(groups=2, repeat=True),
    Convention("flash", groups=2),
    Convention(cache="dict"),
    Convention(rope=False),
    Convention(prefix=5),
    Convention("flash", prefix=5, alone=True),
    Convention(cross=True),
    Convention(numpy=True),
    Convention(breaks=True),
]
FEW = [Convention(), Convention("flash"), Convention(prefix=5)]
"""Those of which all is tried in the fast tests; of the others, that each is recognised and exact."""


DENSE: dict[str, Any] = {"layers": ["dense"] * 3, "cs4a": {}, "csla": {}, "decision_scale": None}


def name(how: Convention) -> str:
    changed = [f"{key}={value}" for key, value in vars(how).items() if value != getattr(Convention(), key)]
    return ",".join(changed) or "sdpa"


@pytest.fixture(autouse=True)
def _no_graphs_from_other_tests() -> None:
    site_graphs.cache_clear()


def attached(how: Convention, schedule: Any = SQUARE, **fields: Any) -> tuple[Painter, Attachment]:
    options = {key: fields.pop(key) for key in ("strict", "inner", "grain") if key in fields}
    model = painter(how)
    sparvar.compile(model, plan_for(model, schedule, **fields), **{"inner": "eager", **options})
    attachment = attachment_of(model)
    assert attachment is not None
    return model, attachment


def kinds(attachment: Attachment) -> list[str]:
    assert attachment.last is not None
    return sorted(attachment.last.ran.values())


@pytest.mark.slow
@pytest.mark.parametrize("how", WAYS, ids=name)
def test_dense_plan_gives_the_models_own_result(how: Convention) -> None:
    expected = painter(how).autoregressive_infer_cfg(B=2)
    model, attachment = attached(how, **DENSE)
    torch.testing.assert_close(model.autoregressive_infer_cfg(B=2), expected, rtol=1e-5, atol=1e-6)
    assert attachment.generations == 1


@pytest.mark.parametrize("how", WAYS, ids=name)
def test_windows_that_hold_every_key_change_nothing(how: Convention) -> None:
    expected = painter(how).autoregressive_infer_cfg(B=2)
    model, attachment = attached(how, exact=True)
    torch.testing.assert_close(model.autoregressive_infer_cfg(B=2), expected, rtol=1e-4, atol=1e-4)
    assert kinds(attachment) == ["sparse"] * 4
    for report in attachment.reports:
        grown = 0 if report.context.keys == report.context.tokens else 2
        assert report.counts["kv_cache"] == grown, report.text


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=() if how in FEW else pytest.mark.slow) for how in WAYS], ids=name
)
def test_sites_decide_and_run_sparse_alike_however_attention_is_called(how: Convention) -> None:
    same, _ = attached(
        Convention(groups=how.groups, rope=how.rope, prefix=how.prefix, alone=how.alone, cross=how.cross)
    )
    model, attachment = attached(how)
    found, expected = model.autoregressive_infer_cfg(B=2), same.autoregressive_infer_cfg(B=2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert kinds(attachment) == ["decide"] + ["sparse"] * 4


@pytest.mark.slow
def test_flash_attention_under_inductor_agrees_with_eager() -> None:
    model, _ = attached(Convention("flash"))
    other, _ = attached(Convention("flash"), inner="inductor")
    expected = model.autoregressive_infer_cfg(B=1)
    torch.testing.assert_close(other.autoregressive_infer_cfg(B=1), expected, rtol=1e-3, atol=1e-3)


def test_torch_compile_then_the_models_own_method() -> None:
    model = painter()
    plan = plan_for(model)
    compiled: Any = torch.compile(model, backend="sparvar", options={"plan": plan, "inner": "eager"})
    compiled.autoregressive_infer_cfg(B=1)
    attachment = attachment_of(compiled)
    assert attachment is not None and kinds(attachment) == ["decide"] + ["sparse"] * 4


def autocast() -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("call", ["sdpa", "flash", "sdpa_blhc"])
def test_keys_are_cached_in_the_compute_dtype_under_autocast(call: str) -> None:
    how = Convention(call)
    own, (model, _) = painter(how), attached(how, grain="attention", **DENSE)
    seen: dict[str, list[Any]] = {"own": [], "ours": []}
    for key, each in (("own", own), ("ours", model)):
        attention = each.blocks[-1].sa
        attention.register_forward_hook(
            lambda module, *_, key=key: seen[key].append((module.cached_k.dtype, module.cached_k.nbytes))
        )
    with autocast():
        expected, found = own.autoregressive_infer_cfg(B=1), model.autoregressive_infer_cfg(B=1)
    assert torch.equal(expected, found)  # rounded once more or once less often, never differently
    assert {dtype for dtype, _ in seen["own"]} == {torch.float32}
    assert [(dtype, 2 * size) for dtype, size in seen["ours"]] == [(torch.bfloat16, size) for _, size in seen["own"]]


def test_keys_that_something_else_reads_keep_their_type() -> None:
    model, attachment = attached(Convention("norm_keys"), **DENSE)
    with autocast():
        own = painter(Convention("norm_keys")).autoregressive_infer_cfg(B=1)
        torch.testing.assert_close(model.autoregressive_infer_cfg(B=1), own)
    assert all(report.counts["kv_cache"] == 0 for report in attachment.reports)


def test_new_seeds_texts_and_lengths_need_no_new_graphs() -> None:
    model, attachment = attached(Convention(cross=True))
    model.autoregressive_infer_cfg(B=1)
    made = len(attachment.reports)
    assert made == 5 + 1 + 2
    for seed, length in ((1, 7), (2, 3), (3, 19)):
        model.autoregressive_infer_cfg(B=1, g_seed=seed, text=torch.randn(1, length, TEXT))
    assert len(attachment.reports) == made


def test_cross_attention_is_left_alone_with_a_reason() -> None:
    model, _ = attached(Convention(cross=True))
    report = sparvar.explain(model, lambda model: model.autoregressive_infer_cfg(B=1))
    left = [site for site in report.sites if not site.taken]
    assert [site.name for site in left] == [f"blocks.{i}.ca" for i in range(3)]


def test_block_that_is_not_one_graph_leaves_its_attention_compiled_and_says_so() -> None:
    model, attachment = attached(Convention(breaks=True))
    report = sparvar.explain(model, lambda model: model.autoregressive_infer_cfg(B=1))
    assert [site.wrapped for site in attachment.sites] == [f"blocks.{i}.sa" for i in range(3)]
    assert any("attention is compiled without its block" in note for note in report.notes)
    model, _ = attached(Convention(breaks=True), grain="block")
    with pytest.raises(CaptureError, match="could not be captured as one graph"):
        model.autoregressive_infer_cfg(B=1)


def test_numpy_stays_as_it_is_outside_of_sites() -> None:
    function = torch.compile(lambda x: x + np.sum([1, 2]), backend="eager")
    assert torch.equal(function(torch.zeros(2)), torch.full((2,), 3.0))


def test_guidance_between_layers_and_per_scale() -> None:
    arguments: dict[str, Any] = {"B": 2, "cfg_list": [1.5, 2.0, 2.5, 3.0, 3.0], "cfg_layer": 1}
    expected = painter().autoregressive_infer_cfg(**arguments)
    model, _ = attached(Convention(), exact=True)
    torch.testing.assert_close(model.autoregressive_infer_cfg(**arguments), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [3, 4])
def test_batch_halved_after_the_decision(scale: int) -> None:
    arguments: dict[str, Any] = {"B": 2, "drop_cfg_at": scale}
    expected = painter().autoregressive_infer_cfg(**arguments)
    model, attachment = attached(Convention(), exact=True)
    torch.testing.assert_close(model.autoregressive_infer_cfg(**arguments), expected, rtol=1e-4, atol=1e-4)
    model, attachment = attached(Convention())
    assert torch.isfinite(model.autoregressive_infer_cfg(**arguments)).all()
    assert kinds(attachment) == ["decide"] + ["sparse"] * 4


@pytest.mark.slow
def test_guidance_off_is_another_batch_and_both_stay_compiled() -> None:
    model, attachment = attached(Convention())
    model.autoregressive_infer_cfg(B=1)
    model.autoregressive_infer_cfg(B=1, cfg_list=[1.0] * 5)
    made = len(attachment.reports)
    model.autoregressive_infer_cfg(B=1)
    model.autoregressive_infer_cfg(B=1, cfg_list=[1.0] * 5)
    assert len(attachment.reports) == made == 2 * 8


def several(exact: bool = False) -> tuple[Painter, Attachment, list[Plan]]:
    model = painter()
    plans = [
        plan_for(model, schedule, exact, name=label)
        for label, schedule in (("sq", SQUARE), ("wide", WIDE), ("tall", TALL))
    ]
    sparvar.compile(model, plans, inner="eager")
    attachment = attachment_of(model)
    assert attachment is not None
    return model, attachment, plans


@pytest.mark.slow
@pytest.mark.parametrize("passed", [True, False], ids=["sites are told", "only the method is told"])
def test_the_call_names_the_schedule_where_lengths_cannot(passed: bool) -> None:
    model, attachment, plans = several(exact=True)
    for schedule, plan in ((WIDE, plans[1]), (TALL, plans[2]), (SQUARE, plans[0]), (TALL, plans[2])):
        expected = painter().autoregressive_infer_cfg(schedule, B=1)
        found = model.autoregressive_infer_cfg(schedule, B=1, pass_schedule=passed)
        assert attachment.last is not None and attachment.last.plan == plan
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_schedule_without_a_plan_is_refused_with_those_there_are() -> None:
    model, _, _ = several()
    other = (*SQUARE[:-1], (1, 5, 7))
    with pytest.raises(PlanError, match=r"1x1 to 6x6.*1x1 to 4x8.*got 5 scales, 1x1 to 5x7.*plan=\[plan, other\]"):
        model.autoregressive_infer_cfg(other, B=1)
    assert torch.isfinite(model.autoregressive_infer_cfg(WIDE, B=1)).all()


def test_several_plans_and_no_schedule_in_the_call_is_never_guessed() -> None:
    model, _, _ = several()
    rope, text = Painter._rope(1, 1), torch.zeros(2, 7, TEXT)
    for block in model.blocks:
        block.sa.kv_caching(True)
    with torch.no_grad(), pytest.raises(PlanError, match="be named by the model's call"):
        model.blocks[0](model.start.expand(2, 1, -1), rope, text)


def test_plans_of_one_model_only_and_one_per_schedule() -> None:
    model = painter()
    with pytest.raises(PlanError, match="are both for 5 scales, 1x1 to 6x6"):
        sparvar.compile(model, [plan_for(model), plan_for(model, name="again")])
    wide = plan_for(model, WIDE)
    other = wide.replace(model={**wide.model.model_dump(mode="json"), "heads": 4, "head_dim": 16})
    with pytest.raises(PlanError, match="is for another model"):
        sparvar.compile(model, [plan_for(model), other])


def test_wrong_scale_index_is_an_error() -> None:
    model, _ = attached(Convention())
    with pytest.raises(SessionError, match="start generations at the first scale"), torch.no_grad():
        model.blocks[0](model.start, Painter._rope(1, 1), torch.zeros(1, 7, TEXT), SQUARE, 2)


def test_generation_that_stops_early_or_breaks_leaves_nothing_behind() -> None:
    model, attachment = attached(Convention())
    expected = model.autoregressive_infer_cfg(B=1, g_seed=4)
    model.autoregressive_infer_cfg(B=1, stop_after=3)
    with pytest.raises(IndexError):
        model.autoregressive_infer_cfg(B=1, cfg_list=[2.0, 2.0, 2.0, 2.0])
    assert torch.equal(model.autoregressive_infer_cfg(B=1, g_seed=4), expected)
    assert attachment.generations == 2


@pytest.mark.parametrize("strict", [True, False])
def test_a_method_that_never_reaches_a_site_is_an_error_or_a_warning(strict: bool) -> None:
    model, _ = attached(Convention(), strict=strict)
    model._blocks = lambda x, *_: x  # type: ignore[assignment,method-assign]
    said: Any = pytest.raises(CaptureError, match="not one call")
    with said if strict else pytest.warns(SparvarWarning, match="not one call"):
        model.autoregressive_infer_cfg(B=1)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (Convention("flash", options=(("softcap", 30.0),)), "scores are capped"),
        (Convention("flash", options=(("window_size", (8, 8)),)), "sliding window of"),
        (Convention("flash", options=(("causal", True),)), "causal within the call"),
        (Convention("flash", options=(("dropout_p", 0.1),)), "dropout is 0.1"),
        (Convention("xformers", options=(("attn_bias", torch.zeros(1)),)), "attention bias"),
        (Convention("sdpa", options=(("dropout_p", 0.1),)), "dropout is 0.1"),
        (Convention("norm_keys"), "do not go back to the model as a cache"),
    ],
    ids=str,
)
def test_variants_that_cannot_be_sparse_are_refused_with_the_reason(how: Convention, reason: str) -> None:
    model, _ = attached(how)
    with pytest.raises(CaptureError, match=f"no attention was rewritten.*{reason}"):
        model.autoregressive_infer_cfg(B=1)


def test_a_model_of_another_size_than_the_plans_is_refused() -> None:
    model = painter()
    plan = plan_for(model)
    wider = plan.replace(model={**plan.model.model_dump(mode="json"), "heads": 4, "head_dim": 16})
    sparvar.compile(model, wider, inner="eager")
    with pytest.raises(CaptureError, match="2 heads of 32 where the plan has 4 of 16"):
        model.autoregressive_infer_cfg(B=1)


def test_an_attached_model_is_not_copied_by_mistake() -> None:
    model, _ = attached(Convention())
    with pytest.raises(CaptureError, match=r"sparvar.detach\(model\) first"):
        copy.deepcopy(model)
    sparvar.detach(model)
    assert torch.equal(copy.deepcopy(model).autoregressive_infer_cfg(B=1), painter().autoregressive_infer_cfg(B=1))


def test_a_checkpoint_in_another_type_keeps_its_plan() -> None:
    model = painter()
    plan = plan_for(model)
    marked = plan.replace(model={**plan.model.model_dump(mode="json"), "fingerprint": sparvar.fingerprint(model)})
    model.blocks.to(torch.bfloat16)
    sparvar.compile(model, marked, inner="eager")
    model = painter()
    model.head = torch.nn.Linear(64, 5)
    with pytest.raises(PlanError, match="be made for this Painter"):
        sparvar.compile(model, marked, inner="eager")


def test_two_models_in_two_threads() -> None:
    found: dict[int, Tensor] = {}
    expected: dict[int, Tensor] = {}
    models = {seed: attached(Convention())[0] for seed in (1, 2)}
    for seed, model in models.items():
        expected[seed] = model.autoregressive_infer_cfg(B=1, g_seed=seed)

    def run(seed: int) -> None:
        for _ in range(3):
            found[seed] = models[seed].autoregressive_infer_cfg(B=1, g_seed=seed)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[seed], expected[seed]) for seed in models)


def test_detached_model_has_its_own_methods_back() -> None:
    model, _ = attached(Convention())
    model.autoregressive_infer_cfg(B=1)
    sparvar.detach(model)
    assert "autoregressive_infer_cfg" not in vars(model)
    assert torch.equal(model.autoregressive_infer_cfg(B=1), painter().autoregressive_infer_cfg(B=1))
