from __future__ import annotations

import json
import math

from sparvar.tools.console import as_json


def test_json_has_no_infinities() -> None:
    assert json.loads(as_json({"a": [math.inf, 1.0], "b": (math.nan,)})) == {"a": [None, 1.0], "b": [None]}
