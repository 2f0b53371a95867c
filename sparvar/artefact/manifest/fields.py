"""Values of a JSON document that know where they stand in it, so that every complaint names the place."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from typing import Any, NoReturn

from sparvar.artefact.manifest.paths import NEVER, path_problem
from sparvar.errors import ArtefactError, message

SHOWN = 80


def _show(value: object) -> str:
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} twice in one object")
        found[key] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"the number {name}")


def parse(text: str | bytes | bytearray, where: str) -> Field:
    """Read strict JSON: no key twice, no NaN or Infinity. ``where`` names the document in messages.

    Raises `ArtefactError`.
    """
    try:
        value = json.loads(text, object_pairs_hook=_no_twins, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(message(where, "be JSON", str(error), "the file is damaged: get it again")) from error
    return Field(value, "", where)


class Field:
    """A JSON value, its place in the document (``formats.aoti.steps[3].in``) and the document's name.

    Every method returns the value as what it must be, or raises `ArtefactError`.
    """

    def __init__(self, value: Any, place: str, where: str) -> None:
        self.value, self.place, self.where = value, place, where

    def fail(self, must: str, got: str | None = None, remedy: str = "") -> NoReturn:
        """Raise `ArtefactError` about this value."""
        subject = f"{self.where}: {self.place}" if self.place else self.where
        raise ArtefactError(message(subject, must, _show(self.value) if got is None else got, remedy))

    def text(self) -> str:
        """A string that is not empty."""
        if not isinstance(self.value, str) or not self.value:
            self.fail("be text")
        return self.value

    def choice(self, allowed: Collection[str]) -> str:
        """One of some strings."""
        if not isinstance(self.value, str) or self.value not in allowed:
            self.fail(f"be one of {', '.join(allowed)}")
        return self.value

    def integer(self, minimum: int = 0) -> int:
        """An integer of at least ``minimum``, below 2 ** 63."""
        if type(self.value) is not int or not minimum <= self.value < 2**63:
            self.fail(f"be an integer from {minimum}")
        return self.value

    def number(self) -> int | float:
        """A finite number; an integer below 2 ** 63 in size."""
        whole = type(self.value) is int and abs(self.value) < 2**63
        if not whole and not (type(self.value) is float and math.isfinite(self.value)):
            self.fail("be a finite number")
        return self.value

    def flag(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            self.fail("be true or false")
        return self.value

    def items(self) -> list[Field]:
        """The values of a list."""
        if not isinstance(self.value, list):
            self.fail("be a list")
        return [Field(value, f"{self.place}[{index}]", self.where) for index, value in enumerate(self.value)]

    def entries(self) -> dict[str, Field]:
        """The values of an object with any keys."""
        if not isinstance(self.value, dict):
            self.fail("be an object")
        return {key: Field(value, self._below(key), self.where) for key, value in self.value.items()}

    def object(self, required: Collection[str], optional: Collection[str] = ()) -> dict[str, Field]:
        """The values of an object with exactly these keys; optional ones may be missing."""
        found = self.entries()
        for key in required:
            if key not in found:
                self.fail(f"have the key {key!r}", f"only {', '.join(found) or 'nothing'}")
        for key, field in found.items():
            if key not in required and key not in optional:
                known = ", ".join([*required, *optional])
                field.fail(f"not be there: the keys here are {known}", "an unknown key")
        return found

    def path(self) -> str:
        """A relative POSIX path that stays inside the artefact and is no file of Python code."""
        text = self.text()
        if problem := path_problem(text):
            self.fail("be a relative path with forward slashes that stays inside the artefact", problem)
        if text.lower().endswith(NEVER):
            self.fail("be a data file or a program", f"{text!r}", "artefacts hold no pickles and no Python code")
        return text

    def _below(self, key: str) -> str:
        if key.isidentifier():
            return f"{self.place}.{key}" if self.place else key
        return f"{self.place}[{_show(key)}]"
