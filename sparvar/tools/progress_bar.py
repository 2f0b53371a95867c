"""The progress of a long task as a bar on the console."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sparvar.tools.console import notes


class ProgressBar(Progress):
    """A `sparvar.progress.Progress` that counts its steps; where the console is no terminal each step is a line."""

    def __init__(self, console: Console, steps: float | None = None) -> None:
        """A bar of ``steps`` steps, which `expect` may say later; with None the time left is not shown."""
        columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn()
        super().__init__(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True)
        self._task = self.add_task("starting", total=steps)

    def step(self, text: str, advance: float = 1.0) -> None:
        """A step begins."""
        self.update(self._task, description=text, advance=advance)
        if not self.console.is_terminal:
            self.console.print(text, markup=False)

    def move(self, advance: float) -> None:
        """Go on by so much without a word."""
        self.advance(self._task, advance)

    def expect(self, steps: float) -> None:
        """How many steps there are in all."""
        self.update(self._task, total=steps)


class ShareBar(ProgressBar):
    """A `sparvar.progress.TaskProgress`: the bar shows the share that is finished, the words also the time left."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, 1.0)
        self._started = time.monotonic()

    def step(self, text: str, share: float = 0.0) -> None:
        """A step begins where ``share`` of the whole, 0 to 1, is finished."""
        shown = text + time_left(time.monotonic() - self._started, share)
        self.update(self._task, description=shown, completed=share)
        if not self.console.is_terminal:
            self.console.print(f"{share:4.0%} {shown}", markup=False)


SURE = 0.2
"""Share of the work after which what is left can be told from what it took: the first compiled programs are known."""


def time_left(seconds: float, share: float) -> str:
    """What to say of the time that is left after ``seconds`` for ``share`` of the work; nothing while it is unknown."""
    if not SURE <= share < 1:
        return ""
    left = seconds * (1 - share) / share
    return f", about {left / 60:.0f} min left" if left >= 90 else f", about {max(1, round(left))} s left"


class Lines:
    """A `sparvar.progress.Progress` of lines, where nobody knows how many there will be."""

    def step(self, text: str) -> None:
        """A step begins."""
        notes().print(text, markup=False)
