"""What a long task says of its own course."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told of every step of a long task, in words for a person."""

    def step(self, text: str) -> None:
        """A step begins."""
        ...


class TaskProgress(Protocol):
    """A `Progress` that is also told how much of the task is finished."""

    def step(self, text: str, share: float = 0.0) -> None:
        """A step begins where ``share`` of the whole, 0 to 1, is finished."""
        ...


class Silent:
    """A `TaskProgress` that shows nothing."""

    def step(self, text: str, share: float = 0.0) -> None:
        return None


class Part:
    """A part of a task, from ``start`` to ``end`` of the whole: its steps' shares are of the part."""

    def __init__(self, whole: TaskProgress, start: float, end: float) -> None:
        self.whole, self.start, self.end = whole, start, end

    def step(self, text: str, share: float = 0.0) -> None:
        """See `TaskProgress.step`."""
        self.whole.step(text, self.start + share * (self.end - self.start))
