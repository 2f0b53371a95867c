"""The JSON Schema of plan files, for editors and other programs."""

from __future__ import annotations

from typing import Any

from sparvar.scale_plans.plan import Plan


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a plan file. It covers names and types; contradictions are for `Plan.check`."""
    schema = Plan.model_json_schema(mode="validation")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "sparvar plan"
    schema["description"] = "What runs at every scale and layer of a Visual AutoRegressive model."
    schema["properties"]["digest"] = {
        "anyOf": [{"type": "string"}, {"type": "null"}],
        "default": None,
        "description": "sha256 of everything that changes the computation; null or absent: computed when loaded.",
    }
    schema["required"] = ["schema_version", *schema["required"]]
    return schema
