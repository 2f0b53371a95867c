"""A `Progress` that tests read."""

from __future__ import annotations


class Lines:
    """Keeps the text of every step."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def step(self, text: str) -> None:
        """A step begins."""
        self.steps.append(text)
