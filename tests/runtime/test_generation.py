"""The state of a generation: the order of scales, rows of a batch, and ops outside of a generation."""

from __future__ import annotations

import pytest
import torch

from sparvar.errors import SessionError
from sparvar.runtime import Columns, Generation, SiteContext, active, current, enter, leave, site_sparse
from tests.tiny import tiny_model, tiny_plan


def begun() -> Generation:
    return Generation(tiny_plan(tiny_model()), {}, lambda kind, scale: abs)


def test_scales_follow_the_schedule_layer_by_layer() -> None:
    state = begun()
    assert state.scale_of(0, 1) == 1
    state.calls[0] = 1
    assert state.scale_of(1, 1) == 1
    assert state.started and not state.finished


def test_layers_out_of_order() -> None:
    with pytest.raises(SessionError, match="layer 1: must run scale 1 after layer 0 has, got the layers in another"):
        begun().scale_of(1, 1)


def test_more_scales_than_planned() -> None:
    state = begun()
    state.calls[0] = 6
    with pytest.raises(SessionError, match="start a new generation after scale 6, the plan's last, got 81 more tokens"):
        state.scale_of(0, 81)


def test_rows_of_the_whole_and_of_the_halved_batch() -> None:
    columns = Columns(torch.arange(8).view(4, 1, 1, 2), torch.full((4, 1, 1), 2))
    assert columns.rows(4) is columns
    assert columns.rows(2).indices.tolist() == [[[[0, 1]]], [[[2, 3]]]]
    shared = Columns(columns.indices[:1], columns.counts[:1])
    assert shared.rows(4) is shared


def test_batch_that_changes_otherwise() -> None:
    columns = Columns(torch.zeros(4, 1, 1, 2), torch.zeros(4, 1, 1))
    with pytest.raises(SessionError, match="batch: must stay 4 after the decision scale, or be halved to 2, got 3"):
        columns.rows(3)


def test_site_op_outside_of_a_generation() -> None:
    assert not active()
    with pytest.raises(SessionError, match="call the model's own generation method"):
        current()
    q = torch.zeros(1, 1, 4, 8)
    with pytest.raises(SessionError, match="must run inside a generation"):
        site_sparse(q, q, q, 1.0)


def test_sparse_site_without_a_decision() -> None:
    previous = enter(SiteContext(begun(), layer=1, scale=5))
    q = torch.zeros(1, 2, 36, 64)
    try:
        with pytest.raises(
            SessionError, match="have column indices from decision scale 4, got none; generate from the"
        ):
            site_sparse(q, q, q, 1.0)
    finally:
        leave(previous)


def test_fakes_of_site_ops_promise_the_layout_of_the_real_ones() -> None:
    q = torch.zeros(2, 3, 5, 8, device="meta")
    for op in (torch.ops.sparvar.site_decide, torch.ops.sparvar.site_sparse):
        out = op(q, q, q, 1.0)
        assert out.shape == q.shape and out.stride() == (120, 8, 24, 1)
