"""Pages from the templates beside this file: jinja2, with every value escaped."""

from __future__ import annotations

import functools
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sparvar.tools.reports import text


@functools.cache
def _environment() -> Environment:
    loader = PackageLoader("sparvar.tools.reports")
    found = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    for filter in (text.numbers, text.plural, text.seconds, text.percent):
        found.filters[filter.__name__] = filter
    return found


def render(template: str, **values: Any) -> str:
    """A page as HTML that needs no other file. A value that a template names and nobody gives is an error."""
    return _environment().get_template(template).render(values)
