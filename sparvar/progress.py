"""What a long task says of its own course."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told of every step of a long task, in words for a person."""

    def step(self, text: str) -> None:
        """A step begins."""
        ...


class Silent:
    """A `Progress` that shows nothing."""

    def step(self, text: str) -> None:
        return None


__all__ = ["Progress", "Silent"]
