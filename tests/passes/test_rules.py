"""Rules on hand-made graphs: where they fire once, where they must not, and why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sparvar import kernels
from sparvar.compiler.find_sites import find_candidates
from sparvar.models.fingerprint import fingerprint
from sparvar.passes import GraphContext, graph_text, run_passes, uuid
from sparvar.passes.base import Rule
from sparvar.passes.manager import PASSES
from sparvar.zoo.transformer import SelfAttention

B, H, D, PAST, NEW = 2, 1, 8, 5, 4
CONTEXT = GraphContext(kind="sparse", scale=3, tokens=NEW, keys=PAST + NEW, capacity=20)


def captured(function: Callable[..., object], dtype: torch.dtype = torch.float32) -> fx.GraphModule:
    """``function(q, cached, new)`` as Dynamo would hand it over, with example values on the nodes."""
    found: list[fx.GraphModule] = []

    def keep(module: fx.GraphModule, _: object) -> Callable[..., object]:
        found.append(module)
        return module.forward

    torch._dynamo.reset()
    q, new = torch.randn(B, H, NEW, D, dtype=dtype), torch.randn(B, H, NEW, D)
    torch.compile(function, backend=keep, dynamic=False, fullgraph=True)(q, torch.randn(B, H, PAST, D), new)
    return found[0]


def plain(q: Tensor, cached: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    k = torch.cat((cached, new), dim=2)
    return F.scaled_dot_product_attention(q, k, k, scale=1.0), k


def test_self_attention_fires_once_and_leaves_nothing_dense() -> None:
    module = captured(plain)
    report = run_passes(module, CONTEXT)
    assert report.counts == {"kv_cache": 1, "site_sparse": 1, "row_mlp": 0}
    assert "scaled_dot_product_attention" not in graph_text(module.graph) and " cat(" not in graph_text(module.graph)


def masked(q: Tensor, cached: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    k = torch.cat((cached, new), dim=2)
    return F.scaled_dot_product_attention(q, k, k, torch.zeros(NEW, PAST + NEW)), k


def causal(q: Tensor, cached: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    k = torch.cat((cached, new), dim=2)
    return F.scaled_dot_product_attention(q, k, k, is_causal=True), k


def dropping(q: Tensor, cached: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    k = torch.cat((cached, new), dim=2)
    return F.scaled_dot_product_attention(q, k, k, dropout_p=0.1), k


def grouped(q: Tensor, cached: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    k = torch.cat((cached, new), dim=2)
    return F.scaled_dot_product_attention(q.repeat(1, 2, 1, 1), k, k, enable_gqa=True), k


def crossing(q: Tensor, cached: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    return F.scaled_dot_product_attention(q, cached, cached), new


def forgetting(q: Tensor, cached: Tensor, new: Tensor) -> Tensor:
    k = torch.cat((cached, new), dim=2)
    return F.scaled_dot_product_attention(q, k, k)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (masked, "attention mask"),
        (causal, "causal"),
        (dropping, "dropout is 0.1"),
        (crossing, "not self-attention over the scales"),
        (forgetting, "do not go back to the model as a cache"),
    ],
)
def test_what_is_left_alone_and_why(function: Callable[..., object], reason: str) -> None:
    report = run_passes(captured(function), CONTEXT)
    assert report.counts["site_sparse"] == 0 and report.counts["kv_cache"] == 0
    assert any(reason in refusal.reason for refusal in report.refusals)


def test_dense_graph_keeps_the_models_own_attention() -> None:
    report = run_passes(captured(plain), GraphContext("dense", 3, NEW, PAST + NEW, 20))
    assert report.counts == {"kv_cache": 1}
    assert "scaled_dot_product_attention" in report.text


def three_parts(q: Tensor, cached: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    k = torch.cat((cached[:, :, :2], cached[:, :, 2:], new), dim=2)
    return F.scaled_dot_product_attention(q, k, k), k


def test_cat_that_is_no_append_is_refused() -> None:
    report = run_passes(captured(three_parts), CONTEXT)
    assert report.counts["kv_cache"] == 0 and report.counts["site_sparse"] == 1
    assert any("does not join exactly" in refusal.reason for refusal in report.refusals)


def test_dump_writes_numbered_graphs(tmp_path: pytest.TempPathFactory) -> None:
    run_passes(captured(plain), CONTEXT, dump=tmp_path)  # type: ignore[arg-type]
    names = sorted(path.name for path in tmp_path.iterdir())  # type: ignore[attr-defined]
    assert names == [
        "scale03-sparse-0-captured.txt",
        "scale03-sparse-1-kv_cache.txt",
        "scale03-sparse-3-site_sparse.txt",
        "scale03-sparse-7-row_mlp.txt",
    ]


def test_uuid_changes_with_the_rules() -> None:
    assert uuid(PASSES) == uuid(PASSES)
    assert uuid(PASSES) != uuid(PASSES[:1])
    assert len({rule.name for rule in PASSES}) == len(PASSES)
    assert all(isinstance(rule.name, str) for rule in PASSES) and Rule is not None


class Wrapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([SelfAttention(64, 1), nn.Linear(2, 2)])


def test_candidates_are_found_in_code_and_only_there() -> None:
    found = find_candidates(Wrapper())
    assert [(c.name, c.calls, c.block, c.caches) for c in found] == [
        ("layers.0", ("scaled_dot_product_attention",), "layers.0", True)
    ]


def test_fingerprint_knows_names_shapes_types_and_not_values() -> None:
    model = Wrapper()
    mark = fingerprint(model)
    with torch.no_grad():
        model.layers[1].weight.zero_()  # type: ignore[operator,union-attr]
    assert fingerprint(model) == mark
    assert fingerprint(model.double()) != mark


ROWS = 2 * kernels.row_mlp_rows(64, 2)  # enough for bf16 too


def mlp_graph(function: Callable[[Tensor, nn.Linear, nn.Linear], Tensor]) -> fx.GraphModule:
    """``function(x, up, down)`` captured on ``ROWS`` rows with 64 hidden values."""
    found: list[fx.GraphModule] = []

    def keep(module: fx.GraphModule, _: object) -> Callable[..., object]:
        found.append(module)
        return module.forward

    torch._dynamo.reset()
    up, down = nn.Linear(8, 64), nn.Linear(64, 8)
    with torch.no_grad():
        torch.compile(lambda x: function(x, up, down), backend=keep, dynamic=False, fullgraph=True)(
            torch.randn(2, ROWS // 2, 8)
        )
    return found[0]


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (F.gelu, "gelu"),
        (lambda x: F.gelu(x, approximate="tanh"), "gelu_tanh"),
        (F.silu, "silu"),
        (F.relu, "relu"),
    ],
)
def test_large_mlp_fires_once_with_its_activation(activation: Callable[[Tensor], Tensor], name: str) -> None:
    module = mlp_graph(lambda x, up, down: x + down(activation(up(x))))
    inputs = [node.meta["example_value"] for node in module.graph.nodes if node.op == "placeholder"]
    torch.manual_seed(0)
    given = [torch.randn(value.shape) * 0.3 for value in inputs]
    with torch.no_grad():
        expected = module(*given)
        report = run_passes(module, CONTEXT)
        actual = module(*given)
    assert report.counts["row_mlp"] == 1 and f", {name})" in report.text and "linear(" not in report.text
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_mlp_of_dense_graphs_is_left_to_the_inner_compiler() -> None:
    module = mlp_graph(lambda x, up, down: down(F.relu(up(x))))
    assert "row_mlp" not in run_passes(module, GraphContext("dense", 3, NEW, PAST + NEW, 20)).counts


def leaking(x: Tensor, up: nn.Linear, down: nn.Linear) -> Tensor:
    hidden = F.relu(up(x))
    return down(hidden) + hidden.mean()


def casting(x: Tensor, up: nn.Linear, down: nn.Linear) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return down(F.relu(up(x)))


@pytest.mark.parametrize(("function", "reason"), [(leaking, "used elsewhere"), (casting, "several dtypes")])
def test_mlp_that_cannot_be_cut_is_refused(
    function: Callable[[Tensor, nn.Linear, nn.Linear], Tensor], reason: str
) -> None:
    report = run_passes(mlp_graph(function), CONTEXT)
    assert report.counts["row_mlp"] == 0
    assert any(reason in refusal.reason for refusal in report.refusals if refusal.rule == "row_mlp")


def test_small_or_other_linears_are_no_mlp() -> None:
    def small(x: Tensor, up: nn.Linear, down: nn.Linear) -> Tensor:
        return down(F.relu(up(x[:, :4]))).mean() + down(torch.tanh(up(x))) + down(up(x))

    report = run_passes(mlp_graph(small), CONTEXT)
    assert report.counts["row_mlp"] == 0 and not [r for r in report.refusals if r.rule == "row_mlp"]
