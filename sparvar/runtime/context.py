"""Which site is running now: set by the wrapper around a site, read by the site ops."""

from __future__ import annotations

import threading
from typing import NamedTuple

from sparvar.errors import SessionError
from sparvar.runtime.generation import Session


class SiteContext(NamedTuple):
    """The call under way: its session, 0-based layer and 1-based scale."""

    session: Session
    layer: int
    scale: int


class _Local(threading.local):
    site: SiteContext | None = None


_local = _Local()


def enter(site: SiteContext) -> SiteContext | None:
    """Make ``site`` the current one of this thread; returns the one before, for :func:`leave`."""
    previous, _local.site = _local.site, site
    return previous


def leave(previous: SiteContext | None) -> None:
    _local.site = previous


def current() -> SiteContext:
    """The site whose graph is running in this thread.

    Raises:
        SessionError: a graph that was compiled for a site runs outside of one.
    """
    if _local.site is None:
        raise SessionError(
            "site op: must run inside a generation of an attached model, got a call without one;"
            " call the model's own generation method"
        )
    return _local.site


def active() -> bool:
    """Whether a site is running in this thread."""
    return _local.site is not None
