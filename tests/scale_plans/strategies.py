"""Plans for the tests: one fixed, and hypothesis strategies for valid ones of every shape."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from sparvar.scale_plans import INDEX_MAPS, ModelInfo, Plan, default_plan

INFINITY_SIDES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)
INFINITY = [(side, side) for side in INFINITY_SIDES]


def infinity_plan(layers: int = 10, **changes: Any) -> Plan:
    """A default plan for the Infinity 1:1 schedule at 1M pixels."""
    sites = [f"blocks.{layer}.attn" for layer in range(layers)]
    plan = default_plan(
        INFINITY, ModelInfo(sites=sites, heads=16, head_dim=128, dtype="bfloat16", family="infinity"), name="test"
    )
    return plan.replace(**changes) if changes else plan


def _odd(grid: tuple[int, int]) -> st.SearchStrategy[int]:
    return st.integers(0, max(grid) - 1).map(lambda reach: 2 * reach + 1)


finite = st.floats(allow_nan=False, allow_infinity=False)
share = st.floats(0, 1)
text = st.text(st.characters(codec="utf-8"), max_size=20)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any valid plan with at least two scales."""
    schedule = draw(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 64)), min_size=2, max_size=8))
    scales = len(schedule)
    decision = draw(st.integers(1, scales - 1))
    later = range(decision + 1, scales + 1)
    cs4a = {
        scale: {
            "budget": draw(st.floats(0, 1, exclude_min=True)),
            "window": draw(st.just(0) | _odd(schedule[scale - 1])),
        }
        for scale in draw(st.sets(st.sampled_from(later), min_size=1))
    }
    csla = {
        target: {
            "windows": {
                scale: draw(_odd(schedule[scale - 1]))
                for scale in draw(st.sets(st.integers(1, target), min_size=1, max_size=4))
            }
        }
        for target in draw(st.sets(st.integers(1, scales), min_size=1, max_size=3))
    }
    layers = draw(st.lists(st.sampled_from(["dense", "cs4a", "csla"]), min_size=1, max_size=12))
    tile = draw(st.tuples(st.integers(1, 32), st.integers(1, 32)))
    alphas = sorted(draw(st.lists(share, min_size=2, max_size=2)))
    thresholds: dict[str, Any] = {"tau": draw(st.none() | share), "alpha_min": alphas[0], "alpha_max": alphas[1]}
    if draw(st.booleans()):
        thresholds |= {
            "tau": draw(share),
            "beta": draw(st.floats(0, 1e6, exclude_min=True)),
            "start": draw(st.integers(2, scales)),
            "representative": draw(st.integers(1, scales)),
            "scores": draw(st.lists(share, min_size=len(layers), max_size=len(layers))),
            "min_keep": draw(st.floats(0, 1, exclude_min=True)),
        }
    return Plan.model_validate(
        {
            "name": draw(text),
            "model": {
                "fingerprint": "sha256:" + draw(st.integers(0, 2**256 - 1).map(lambda value: f"{value:064x}")),
                "sites": [f"layer{layer}" for layer in range(len(layers))],
                "heads": draw(st.integers(1, 64)),
                "head_dim": 8 * draw(st.integers(1, 32)),
                "dtype": draw(st.sampled_from(["float32", "bfloat16", "float16"])),
                "family": draw(text),
            },
            "schedule": schedule,
            "prefix": draw(st.integers(0, 300)),
            "tile": tile,
            "sink_scales": draw(st.integers(0, scales)),
            "decision_scale": decision,
            "index_map": draw(st.sampled_from(INDEX_MAPS)),
            "output_correction": draw(st.booleans()),
            "column_sum_stride": draw(st.integers(1, max(tile))),
            "layers": layers,
            "cs4a": cs4a,
            "csla": csla,
            "thresholds": thresholds,
            "measured": draw(st.dictionaries(text, finite, max_size=3)),
            "provenance": {"calibrated": draw(st.booleans()), "note": draw(text), "details": {"b": "2", "a": "1"}},
        }
    )
