"""Facts about a model and its sites."""

from sparvar.passes.analyse.fingerprint import fingerprint

__all__ = ["fingerprint"]
