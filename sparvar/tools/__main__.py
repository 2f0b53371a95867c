"""``python -m sparvar.tools``: the same as the ``sparvar`` command."""

from __future__ import annotations

from sparvar.tools.cli import main

main()
