"""The exceptions and warnings of sparvar, and the shape of their messages.

A message names its subject, what that must be, what it got and, where there is one, the remedy.
Every exception derives from `SparvarError`, so one `except` clause covers the package.
"""

from __future__ import annotations

from collections.abc import Iterable


def message(subject: str, must: str, got: object, remedy: str = "") -> str:
    """Return ``subject: must ..., got ...; remedy``.

    ``must`` is written without the word "must": ``message("q", "have 4 dimensions", "3")``.
    """
    text = f"{subject}: must {must}, got {got}"
    return f"{text}; {remedy}" if remedy else text


class SparvarError(Exception):
    """Base of every exception raised by sparvar."""


class PlanError(SparvarError):
    """A plan cannot be read, contradicts itself, or does not fit the model it is used with.

    ``problems`` holds one line per contradiction; ``str`` shows all of them.
    """

    problems: list[str]

    def __init__(self, problems: str | Iterable[str], source: str = "plan") -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        self.source = source
        super().__init__(self.problems, source)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return f"{self.source}: {self.problems[0]}"
        lines = [f"{self.source}: {len(self.problems)} problems"]
        lines += [f"  {number}. {problem}" for number, problem in enumerate(self.problems, start=1)]
        return "\n".join(lines)


class OptionError(SparvarError):
    """An option is unknown, has a wrong value, or does not go with another option."""


class KernelError(SparvarError, ValueError):
    """An argument of an op has a wrong shape, dtype, device or value, or a kernel cannot run here."""


class CaptureError(SparvarError):
    """The model's graph could not be captured, or an attention site in it was not recognised."""


class GraphBreakError(CaptureError):
    """A site cannot be captured as one graph."""


class SessionError(SparvarError):
    """The state of a generation does not fit the call: wrong order of scales, stale or missing state."""


class WeightsError(SparvarError):
    """A weights file is missing, damaged, or belongs to another model."""


class ArtefactError(SparvarError):
    """An artefact is damaged, unsafe, or does not fit this machine."""


class OutputError(SparvarError):
    """A file could not be written; what stood at its place before is untouched."""


class SparvarWarning(UserWarning):
    """Base of every warning given by sparvar."""


class PlanWarning(SparvarWarning):
    """A plan is usable but differs from what its author saved."""
