"""How a test says that a private name of torch or Triton moved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import pytest
from _pytest.outcomes import Exit, Skipped

from tests.architecture import checks


@contextmanager
def name_stands(name: str, keeper: str, use: str) -> Iterator[None]:
    """Around what tries a private name: whatever goes wrong is reported as a name that moved, with what to do.

    ``name`` is dotted, ``keeper`` the function of ours that alone uses it, ``use`` what it is used for.
    """
    try:
        yield
    except (Skipped, Exit):
        raise
    except BaseException as error:
        library = name.split(".")[0]
        pytest.fail(
            f"{name} is not what it was: {library} {metadata.version(library)} moved or changed it "
            f"({type(error).__name__}: {error}). It serves to {use}. Look for its successor in the sources of that "
            f"version, change {keeper}, which alone uses it, and keep what earlier versions need beside it."
        )


def untried(module: str, test: str) -> list[str]:
    """Private names in the file ``module`` that the file ``test`` does not name: in full or without the last part.

    Of an attribute of some object, its own name must stand there.
    """
    text = Path(test).read_text(encoding="utf-8")

    def told(name: str) -> bool:
        if name.split(".")[0] not in checks.LIBRARIES:
            return name.split(".")[-1] in text
        return name in text or name.rpartition(".")[0] in text

    return sorted({name for _, name in checks.private_names(Path(module), set()) if not told(name)})
