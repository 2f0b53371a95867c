"""Dynamo's limits: raised for our own graphs alone, and the user's are as before whatever happens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import sparvar
from sparvar.backend import attachment_of, detach
from sparvar.compiler.compiled_sites import site_graphs
from tests.tiny import dense_changes, generate, tiny_model, tiny_plan

NAMES = ("recompile_limit", "accumulated_recompile_limit")
SIDES = (1, 2)


def limits() -> tuple[int, int]:
    return tuple(getattr(torch._dynamo.config, name) for name in NAMES)  # type: ignore[return-value]


def attached() -> nn.Module:
    model = tiny_model(SIDES, depth=1)
    return sparvar.compile(model, tiny_plan(model, **dense_changes(1)), inner="eager")


def graphs(model: nn.Module) -> int:
    attachment = attachment_of(model)
    assert attachment is not None
    return len(attachment.reports)


@pytest.fixture(autouse=True)
def _no_graphs_from_other_tests() -> None:
    site_graphs.cache_clear()


@pytest.mark.parametrize("own", [None, (5, 300), (64, 4096)])
def test_limits_are_the_users_before_while_and_after(own: tuple[int, int] | None) -> None:
    before = limits()
    seen = []
    wanted = own or before
    changes: dict[str, Any] = dict(zip(NAMES, own, strict=True)) if own else {}
    with torch._dynamo.config.patch(**changes):
        model = attached()
        assert limits() == wanted
        model.head.register_forward_hook(lambda *_: seen.append(limits()))  # type: ignore[union-attr]
        generate(model)
        assert limits() == wanted
        detach(model)
        assert limits() == wanted
    assert limits() == before
    assert seen and set(seen) == {wanted}


def test_limits_are_as_before_after_an_exception() -> None:
    before = limits()
    model = attached()

    def fail(*_: object) -> None:
        raise LookupError("in the middle")

    model.head.register_forward_hook(fail)  # type: ignore[union-attr]
    with pytest.raises(LookupError, match="in the middle"):
        generate(model)
    assert limits() == before


def test_more_batch_sizes_than_torchs_own_limit() -> None:
    own = torch._dynamo.config.recompile_limit
    model = attached()
    for rows in range(1, own + 2):
        images = generate(model, labels=["mountain"] * rows)
        assert images.shape[0] == rows
    assert graphs(model) == len(SIDES) * (own + 1)
    assert torch._dynamo.config.recompile_limit == own


def test_a_limit_that_the_user_raises_later_holds_and_keeps_the_graphs() -> None:
    with torch._dynamo.config.patch(recompile_limit=1):
        model = attached()
        generate(model)
        with pytest.raises(sparvar.CaptureError, match="recompile_limit: must be at least 2"):
            generate(model, labels=["mountain"])
        assert graphs(model) == len(SIDES)
    with torch._dynamo.config.patch(recompile_limit=2):
        generate(model, labels=["mountain"])
        assert graphs(model) == 2 * len(SIDES)
        generate(model)
        assert graphs(model) == 2 * len(SIDES)
