from __future__ import annotations

import json
from typing import Any

import pytest

from tests.tools.conftest import Tiny


def test_run_shows_sites_and_rewrites(invoke: Any, tiny: Tiny) -> None:
    done = invoke("explain", "--run", "--json", *tiny.options)
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert [(site["name"], site["policy"]) for site in facts["sites"]] == [
        ("blocks.0.attn", "cs4a"),
        ("blocks.1.attn", "csla"),
    ]
    sparse = [graph for graph in facts["graphs"] if graph["kind"] == "sparse"]
    assert sparse
    assert all(graph["rewrites"]["site_sparse"] == 1 for graph in sparse)


def test_without_a_plan_the_candidates_are_listed(invoke: Any, tiny: Tiny) -> None:
    done = invoke("explain", "--weights", tiny.weights)
    assert done.exit_code == 0
    assert "No plan is attached" in done.stderr
    assert "blocks.1.attn" in done.stdout
    assert "left" in done.stdout


def test_a_model_without_attention(invoke: Any) -> None:
    done = invoke("explain", "torch.nn:Identity")
    assert done.exit_code == 0
    assert "no module whose own forward calls attention" in done.stdout


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("landscape", "MODEL: must be zoo:landscape or package.module:factory, got 'landscape'"),
        ("nosuch.module:build", "must name a module that can be imported, got No module named 'nosuch'"),
        ("torch.nn:Identitty", "has no callable named Identitty; did you mean Identity"),
        ("torch.nn:Linear", "must be callable without arguments, got missing a required argument: 'in_features'"),
        ("platform:machine", "must give a torch.nn.Module"),
    ],
)
def test_models_that_cannot_be_had(invoke: Any, model: str, text: str) -> None:
    done = invoke("explain", model)
    assert done.exit_code == 1
    assert text in done.stderr


def test_run_needs_to_know_how_to_generate(invoke: Any, tiny: Tiny) -> None:
    done = invoke("explain", "torch.nn:Identity", "--run")
    assert done.exit_code == 1
    assert "no shipped plan" in done.stderr
