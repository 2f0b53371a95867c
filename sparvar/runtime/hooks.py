"""What watches the generations of an attached model: calibration measures and benchmarks time through these."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparvar.errors import SessionError, message
from sparvar.runtime.generation import Generation, SiteContext


class Hook:
    """Watches generations between ``with attachment.hooked(hook):`` and its end.

    A subclass overrides what it needs; what it leaves alone costs nothing. Of several hooks the first one installed is
    the outermost.

    Attributes:
        scales: scales at which `attention` computes what is dense in the plan; for generations that start from now on.
    """

    scales: Collection[int] = ()

    def attention(self, site: SiteContext, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Dense attention of a site at one of ``scales``: [B, H, N, D] of key and value [B, Hkv, T, D].

        Must not return one of its arguments.
        """
        grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(query, key, value, scale=scale, enable_gqa=grouped).clone()

    def site_call(self, layer: int, proceed: Callable[[], Any]) -> Any:
        """A whole call of a wrapped site, 0-based ``layer``; returns what ``proceed()`` does."""
        return proceed()

    def graph_call(
        self, site: SiteContext, args: Sequence[Any], kwargs: dict[str, Any], proceed: Callable[[], Any]
    ) -> Any:
        """The call of a site's compiled forward on its module's arguments; returns what ``proceed()`` does."""
        return proceed()

    def scale_finished(self, scale: int, decode: Callable[[], Tensor]) -> None:
        """A scale has been drawn; ``decode()`` gives images of what is drawn so far, [B, 3, H, W] in [0, 1].

        While a hook overrides this, generations run as chains of their family's functions.
        """


class Hooks:
    """The hooks of an attachment, sorted by what they override: most calls find nothing to do.

    Attributes:
        installed: all of them, the outermost first, as in the others.
        observer: the hook that sees dense attention, or None.
        site_calls, graph_calls, scales_finished: hooks that override these methods.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sort(())

    def _sort(self, hooks: tuple[Hook, ...]) -> None:
        self.installed = hooks
        self.observer = next((hook for hook in hooks if hook.scales), None)
        self.site_calls = _overriding(hooks, "site_call")
        self.graph_calls = _overriding(hooks, "graph_call")
        self.scales_finished = _overriding(hooks, "scale_finished")

    @contextmanager
    def install(self, hook: Hook) -> Iterator[None]:
        """Install ``hook`` until the end of the ``with`` block.

        Raises:
            SessionError: it observes attention, and another hook does already.
        """
        with self._lock:
            if hook.scales and self.observer is not None:
                raise SessionError(
                    message("hook", "be the only one that observes attention", "a second one", "install one at a time")
                )
            self._sort((*self.installed, hook))
        try:
            yield
        finally:
            with self._lock:
                self._sort(tuple(each for each in self.installed if each is not hook))

    def site_call(self, layer: int, proceed: Callable[[], Any]) -> Any:
        """Call ``proceed`` inside all hooks."""
        for hook in reversed(self.site_calls):
            proceed = functools.partial(hook.site_call, layer, proceed)
        return proceed()

    def graph_call(
        self, site: SiteContext, args: Sequence[Any], kwargs: dict[str, Any], proceed: Callable[[], Any]
    ) -> Any:
        """Call ``proceed`` inside all hooks."""
        for hook in reversed(self.graph_calls):
            proceed = functools.partial(hook.graph_call, site, args, kwargs, proceed)
        return proceed()


def _overriding(hooks: Sequence[Hook], name: str) -> tuple[Hook, ...]:
    return tuple(hook for hook in hooks if getattr(type(hook), name) is not getattr(Hook, name))


class SiteTimes(Hook):
    """Seconds of all sites together, by scale, of the last generation; on a GPU every site is waited for."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}
        self._generation: Generation | None = None

    def graph_call(
        self, site: SiteContext, args: Sequence[Any], kwargs: dict[str, Any], proceed: Callable[[], Any]
    ) -> Any:
        if site.generation is not self._generation:
            self._generation = site.generation
            self.seconds = {}
        started = _now()
        out = proceed()
        self.seconds[site.scale] = self.seconds.get(site.scale, 0.0) + _now() - started
        return out


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
