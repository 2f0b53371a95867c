"""Hooks on an attached model: what they see, their order, and that nothing of them is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import sparvar
from sparvar.runtime import Hook, SiteContext
from sparvar.runtime.attachment import Attachment
from sparvar.runtime.hooks import SiteTimes
from tests.tiny import SIDES, tiny_model, tiny_plan

LAYERS = 3


class Seen(Hook):
    """Notes what it is told."""

    def __init__(self, name: str = "", log: list[str] | None = None) -> None:
        self.name, self.log = name, [] if log is None else log
        self.layers: list[int] = []
        self.sites: list[tuple[int, int]] = []
        self.images: dict[int, Tensor] = {}

    def site_call(self, layer: int, proceed: Callable[[], Any]) -> Any:
        self.layers.append(layer)
        self.log.append(self.name)
        return proceed()

    def graph_call(
        self, site: SiteContext, args: Sequence[Any], kwargs: dict[str, Any], proceed: Callable[[], Any]
    ) -> Any:
        assert args[0].shape[1] in [side * side for side in SIDES]
        self.sites.append((site.scale, site.layer))
        return proceed()


class Watch(Hook):
    """Sees attention and what is drawn."""

    def __init__(self) -> None:
        self.scales = (2, 5)
        self.observed: list[tuple[int, int]] = []
        self.images: dict[int, Tensor] = {}

    def attention(self, site: SiteContext, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.observed.append((site.scale, site.layer))
        return super().attention(site, query, key, value, scale)

    def scale_finished(self, scale: int, decode: Callable[[], Tensor]) -> None:
        self.images[scale] = decode()


@pytest.fixture
def model() -> Iterator[Any]:
    model = tiny_model()
    with torch.inference_mode():
        yield sparvar.compile(model, tiny_plan(model), inner="eager")


def bond(model: Any) -> Attachment:
    found = sparvar.attachment_of(model)
    assert found is not None
    return found


def draw(model: Any) -> Tensor:
    images: Tensor = model.generate(["sea"], seed=1)
    return images


def test_a_hook_sees_every_call_until_its_end(model: Any) -> None:
    expected = draw(model)
    hook, times = Seen(), SiteTimes()
    with bond(model).hooked(hook), bond(model).hooked(times):
        assert torch.equal(draw(model), expected)
        assert torch.equal(draw(model), expected)
    every = [(scale, layer) for scale in range(1, len(SIDES) + 1) for layer in range(LAYERS)]
    assert hook.sites == 2 * every and hook.layers == [layer for _, layer in 2 * every]
    assert list(times.seconds) == list(range(1, len(SIDES) + 1)) and min(times.seconds.values()) > 0
    assert torch.equal(draw(model), expected)
    assert len(hook.sites) == 2 * len(every)


def test_attention_and_images_are_seen(model: Any) -> None:
    expected = draw(model)
    hook = Watch()
    with bond(model).hooked(hook):
        torch.testing.assert_close(draw(model), expected)
    plan = bond(model).plan
    dense = [(scale, layer) for scale in hook.scales for layer in range(LAYERS) if plan.kind(scale, layer) == "dense"]
    assert hook.observed == dense
    assert list(hook.images) == list(range(1, len(SIDES) + 1))
    torch.testing.assert_close(hook.images[len(SIDES)], expected)


def test_the_first_hook_is_the_outermost(model: Any) -> None:
    log: list[str] = []
    with bond(model).hooked(Seen("a", log)), bond(model).hooked(Seen("b", log)):
        draw(model)
    assert log[:4] == ["a", "b", "a", "b"]


def test_hooks_go_after_an_error(model: Any) -> None:
    class Fails(Hook):
        def site_call(self, layer: int, proceed: Callable[[], Any]) -> Any:
            raise ZeroDivisionError

    expected = draw(model)
    with pytest.raises(ZeroDivisionError), bond(model).hooked(Fails()):
        draw(model)
    assert not bond(model).hooks.installed
    assert torch.equal(draw(model), expected)


def test_only_one_observes(model: Any) -> None:
    with bond(model).hooked(Watch()):
        reason = "hook: must be the only one that observes attention, got a second one"
        with pytest.raises(sparvar.SessionError, match=reason), bond(model).hooked(Watch()):
            pass
        assert len(bond(model).hooks.installed) == 1


def test_paused_runs_dense_and_unseen(model: Any) -> None:
    expected, hook = draw(model), Seen()
    plain = draw(tiny_model())
    with bond(model).hooked(hook):
        with pytest.raises(ZeroDivisionError), bond(model).paused():
            with bond(model).paused():
                assert torch.equal(draw(model), plain)
            assert not bond(model).enabled
            raise ZeroDivisionError
        assert not hook.sites
        assert bond(model).enabled and torch.equal(draw(model), expected) and hook.sites
