"""The progress of a long task as a bar on the console."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sparvar.tools.console import notes

__all__ = ["Lines", "ProgressBar"]


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


class Lines:
    """A `sparvar.progress.Progress` of lines, where nobody knows how many there will be."""

    def step(self, text: str) -> None:
        """A step begins."""
        notes().print(text, markup=False)
