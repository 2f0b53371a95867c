"""Rewritten graphs as text. To accept a change: ``python -m tests.passes.graphs`` and read the diff."""

from __future__ import annotations

import pytest
import torch

from tests.passes.graphs import CASES, GOLDEN, rewritten


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return rewritten()


@pytest.mark.skipif(torch.__version__ < "2.13", reason="node names are those of torch 2.13")
@pytest.mark.parametrize("name", CASES)
def test_graph(texts: dict[str, str], name: str) -> None:
    golden = (GOLDEN / f"{name}.txt").read_text()
    assert texts[name] == golden, "python -m tests.passes.graphs accepts the new text"


def test_what_the_graphs_must_say(texts: dict[str, str]) -> None:
    assert "scaled_dot_product_attention" in texts["first_scale_dense"]
    assert "kv_acquire" not in texts["first_scale_dense"]
    assert texts["second_scale_dense"].count("= kv_extend.default(") == 2
    assert "site_decide" in texts["decide"] and "scaled_dot_product_attention" not in texts["decide"]
    assert "site_sparse" in texts["sparse"] and "scaled_dot_product_attention" not in texts["sparse"]
