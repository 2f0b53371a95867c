"""The backend as a user calls it, on a small model of the shipped architecture."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

import sparvar
from sparvar.backend import attachment_of
from sparvar.compiler.compiled_sites import site_graphs
from sparvar.runtime import Hook, SiteContext
from tests.tiny import SIDES, dense_changes, full_window_changes, generate, tiny_model, tiny_plan

EAGER = {"inner": "eager"}


def attached(changes: dict[str, Any] | None = None, **options: Any) -> nn.Module:
    model = tiny_model()
    return sparvar.compile(model, tiny_plan(model, **(changes or {})), **{**EAGER, **options})


@pytest.fixture(autouse=True)
def _no_graphs_from_other_tests() -> None:
    site_graphs.cache_clear()


@pytest.fixture
def expected() -> torch.Tensor:
    return generate(tiny_model())


@pytest.mark.parametrize("grain", ["attention", "block"])
def test_dense_plan_returns_the_models_own_images(expected: torch.Tensor, grain: str) -> None:
    images = generate(attached(dense_changes(), grain=grain))
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("grain", ["attention", "block"])
def test_windows_that_hold_every_key_change_nothing(expected: torch.Tensor, grain: str) -> None:
    model = attached(full_window_changes(), grain=grain)
    images = generate(model)
    attachment = attachment_of(model)
    assert attachment is not None and attachment.last is not None
    assert sum(kind == "sparse" for kind in attachment.last.ran.values()) == 2 * 3
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-4)


def test_torch_compile_by_name_attaches_and_runs_sparse(expected: torch.Tensor) -> None:
    model = tiny_model()
    plan = tiny_plan(model)
    compiled = torch.compile(model, backend="sparvar", options={"plan": plan, **EAGER})
    images = generate(compiled)  # type: ignore[arg-type]
    attachment = attachment_of(compiled)  # type: ignore[arg-type]
    assert attachment is not None and attachment.last is not None
    kinds = list(attachment.last.ran.values())
    assert (kinds.count("decide"), kinds.count("sparse")) == (1, 4)
    assert len(kinds) == plan.planned_sites()
    assert images.shape == expected.shape and torch.isfinite(images).all()


@pytest.mark.slow
def test_torch_compile_with_inductor_agrees_with_eager_inside() -> None:
    sides = (1, 2, 4, 6)
    model = tiny_model(sides)
    changes = full_window_changes(sides)
    dense = generate(model)
    compiled = torch.compile(model, backend="sparvar", options={"plan": tiny_plan(model, **changes)})
    torch.testing.assert_close(generate(compiled), dense, rtol=1e-4, atol=1e-4)  # type: ignore[arg-type]


def test_one_graph_per_scale_and_kind_and_none_for_other_seeds() -> None:
    model = attached()
    generate(model)
    attachment = attachment_of(model)
    assert attachment is not None
    made = [(report.context.scale, report.context.kind) for report in attachment.reports]
    assert len(made) == len(set(made)) == len(SIDES) + 1 + 2  # dense everywhere, decide once, sparse twice
    generate(model, seed=9)
    generate(model, labels=["sea", 1])
    assert len(attachment.reports) == len(made)
    generate(model, cfg=1.0)
    assert len(attachment.reports) == 2 * len(made)


def test_every_graph_reports_its_rewrites() -> None:
    model = attached()
    generate(model)
    attachment = attachment_of(model)
    assert attachment is not None
    for report in attachment.reports:
        assert report.counts["kv_cache"] == (0 if report.context.scale == 1 else 2)
        assert report.counts.get("site_decide", 0) == (report.context.kind == "decide")
        assert report.counts.get("site_sparse", 0) == (report.context.kind == "sparse")
        assert not report.refusals


def test_cache_is_one_buffer_that_grows_in_place() -> None:
    model = attached()
    seen: list[tuple[int, int]] = []
    attention = model.blocks[0].attn  # type: ignore[union-attr,index]

    def watch(scale: int) -> None:
        seen.append((attention.cached_k.data_ptr(), attention.cached_k.shape[2]))

    generate(model, on_scale=watch)
    assert [length for _, length in seen] == [1, 5, 14, 30, 66, 130]
    assert len({pointer for pointer, _ in seen[1:]}) == 1


@pytest.mark.slow
def test_same_seed_gives_the_same_images_and_rows_do_not_depend_on_the_batch() -> None:
    model = attached()
    both = generate(model, labels=["sea", "snow"], seed=5)
    again = generate(model, labels=["sea", "snow"], seed=5)
    assert torch.equal(both, again)
    alone = generate(model, labels=["snow"], seed=6)
    torch.testing.assert_close(alone[0], both[1], rtol=1e-4, atol=1e-4)


def test_generation_given_up_half_way_starts_again() -> None:
    model = attached()
    expected = generate(model)

    def stop(scale: int) -> None:
        if scale == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, on_scale=stop)
    assert torch.equal(generate(model), expected)


def test_error_inside_a_site_leaves_the_next_generation_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = attached()
    expected = generate(model)
    with monkeypatch.context() as patch:
        patch.setattr("sparvar.kernels.map_columns", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            generate(model)
    assert torch.equal(generate(model), expected)


def test_two_models_in_two_threads() -> None:
    models = [attached(), attached()]
    expected = [generate(models[0], seed=1), generate(models[1], seed=2)]
    found: dict[int, torch.Tensor] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: generate(models[i], seed=i + 1)})) for i in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_one_model_in_two_threads_is_refused_and_the_first_goes_on() -> None:
    model = attached()
    expected = generate(model)
    raised: list[BaseException] = []

    def intrude(scale: int) -> None:
        if scale == 2:
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()

    def other() -> None:
        # Upstream's caches live on the modules, so a second thread would mix two images.
        try:
            with torch.inference_mode():
                attention = attachment_of(model).sites[0]  # type: ignore[union-attr]
                block = attention.module
                block.forward(torch.zeros(4, 1, 128), torch.zeros(4, 6, 128), model.rope(0))  # type: ignore[operator]
        except sparvar.SessionError as error:
            raised.append(error)

    images = generate(model, on_scale=intrude)
    assert len(raised) == 1 and "another thread" in str(raised[0])
    assert torch.equal(images, expected)


def test_a_second_thread_is_refused_while_the_first_call_runs() -> None:
    model = attached()
    expected = generate(model)
    raised: list[BaseException] = []

    class Intrude(Hook):
        def graph_call(
            self, site: SiteContext, args: Sequence[Any], kwargs: dict[str, Any], proceed: Callable[[], Any]
        ) -> Any:
            if (site.scale, site.layer) == (1, 0):
                thread = threading.Thread(target=other)
                thread.start()
                thread.join()
            return proceed()

    found = attachment_of(model)
    assert found is not None
    block: Any = found.sites[0].module

    def other() -> None:
        try:
            with torch.inference_mode():
                block.forward(torch.zeros(4, 1, 128), torch.zeros(4, 6, 128), model.rope(0))  # type: ignore[operator]
        except sparvar.SessionError as error:
            raised.append(error)

    with found.hooked(Intrude()):
        images = generate(model)
    assert len(raised) == 1 and "another thread" in str(raised[0])
    assert torch.equal(images, expected)


def test_a_generation_whose_first_call_fails_does_not_keep_other_threads_out() -> None:
    model = attached()
    expected = generate(model)

    class Fails(Hook):
        def graph_call(
            self, site: SiteContext, args: Sequence[Any], kwargs: dict[str, Any], proceed: Callable[[], Any]
        ) -> Any:
            raise ZeroDivisionError

    found = attachment_of(model)
    assert found is not None
    block: Any = found.sites[0].module
    with found.hooked(Fails()), torch.inference_mode(), pytest.raises(ZeroDivisionError):
        block.forward(torch.zeros(4, 1, 128), torch.zeros(4, 6, 128), model.rope(0))  # type: ignore[operator]
    images: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: images.append(generate(model)))
    thread.start()
    thread.join()
    assert torch.equal(images[0], expected)


def test_detach_gives_the_model_back(expected: torch.Tensor) -> None:
    model = attached()
    generate(model)
    sparvar.detach(model)
    assert attachment_of(model) is None
    assert torch.equal(generate(model), expected)


def test_attaching_again_replaces_the_plan() -> None:
    model = attached()
    sparvar.compile(model, tiny_plan(model, **dense_changes()), **EAGER)
    generate(model)
    attachment = attachment_of(model)
    assert attachment is not None and attachment.last is not None and not attachment.last.ran


def test_training_forward_is_left_alone_and_explained() -> None:
    model = attached()
    inputs = [torch.zeros(1, 8, side, side) for side in SIDES]
    labels = torch.tensor([0])
    expected = tiny_model()(labels, inputs)
    with torch.enable_grad():
        found = model(labels, inputs)
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(model(labels, inputs), expected)
    assert any("teacher forcing" in note for note in sparvar.explain(model).notes)


def test_attaching_the_same_plan_again_finds_its_graphs() -> None:
    first, second = attached(), attached()
    generate(first)
    attachment = attachment_of(second)
    assert attachment is not None
    made = len(attachment.reports)
    generate(second)
    assert len(attachment.reports) == made > 0


def test_recompile_limit_is_an_error_before_the_run_that_names_the_setting() -> None:
    model = attached()
    reason = r"recompile_limit: must be at least 2, .*got 1; set torch\._dynamo\.config\.recompile_limit = 2"
    with torch._dynamo.config.patch(recompile_limit=1):
        generate(model)
        made = len(attachment_of(model).reports)  # type: ignore[union-attr]
        with pytest.raises(sparvar.CaptureError, match=reason):
            generate(model, cfg=1.0)
        assert len(attachment_of(model).reports) == made  # type: ignore[union-attr]
        generate(model)


@pytest.mark.slow
def test_attaching_one_model_again_and_again_needs_no_higher_limit() -> None:
    model = attached()
    generate(model)
    attachment = attachment_of(model)
    assert attachment is not None
    plan = attachment.plan
    made = len(attachment.reports)
    for _ in range(34):
        sparvar.compile(model, plan, inner="eager")
        generate(model)
    again = attachment_of(model)
    assert again is not None and len(again.reports) == made


def test_explain_names_every_candidate_with_its_reason() -> None:
    model = tiny_model()
    before = sparvar.explain(model)
    assert [site.name for site in before.sites] == [f"blocks.{i}.attn" for i in range(3)]
    assert not any(site.taken for site in before.sites)
    sparvar.compile(model, tiny_plan(model), **EAGER)
    after = sparvar.explain(model, generate)
    assert [site.policy for site in after.sites] == ["dense", "cs4a", "csla"]
    assert after.sites[1].decided_scale == 4 and after.sites[1].sparse_scales == (5, 6)
    assert "sparse at scales 5, 6" in str(after)
    assert len(after.graphs) == len(SIDES) + 3


@pytest.mark.parametrize("index_map", ["identity", "relative", "footprint"])
@pytest.mark.parametrize("correction", [False, True])
def test_maps_and_output_correction_run(index_map: str, correction: bool) -> None:
    changes = {"index_map": index_map, "output_correction": correction, "layers": ["cs4a"] * 3, "csla": {}}
    assert torch.isfinite(generate(attached(changes))).all()


def test_batch_halved_after_the_decision_keeps_the_first_rows() -> None:
    """Some callers drop the CFG branch mid-run: the first half of the indices belongs to what is left."""
    model = attached({"layers": ["cs4a"] * 3, "csla": {}}, grain="attention")
    full = tiny_model()
    sparvar.compile(full, tiny_plan(full, layers=["cs4a"] * 3, csla={}), **EAGER, grain="attention")
    outs = []
    torch.manual_seed(1)
    tokens = [torch.randn(2, side * side, 128) for side in SIDES]
    for model_, halve in ((full, False), (model, True)):
        for block in model_.blocks:  # type: ignore[union-attr]
            block.attn.kv_caching(True)  # type: ignore[union-attr,operator]
        with torch.inference_mode():
            for scale, x in enumerate(tokens):
                rope = model_.rope(scale)  # type: ignore[operator]
                last = scale == len(SIDES) - 1
                for block in model_.blocks:  # type: ignore[union-attr]
                    if halve and last:
                        block.attn.cached_k = block.attn.cached_k[:1]  # type: ignore[union-attr,index]
                        block.attn.cached_v = block.attn.cached_v[:1]  # type: ignore[union-attr,index]
                    out = block.attn(x[:1] if halve and last else x, rope)  # type: ignore[operator]
        outs.append(out)
    torch.testing.assert_close(outs[1], outs[0][:1], rtol=1e-5, atol=1e-5)
