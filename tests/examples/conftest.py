"""The small model that the command's tests use."""

from tests.tools.conftest import tiny

__all__ = ["tiny"]
