"""Differences between plans, as golden text."""

from __future__ import annotations

from hypothesis import given, settings

from sparvar.scale_plans import Plan, diff
from tests.scale_plans.strategies import INFINITY, infinity_plan, plans

GOLDEN = """\
name: test -> tuned
model.dtype: bfloat16 -> float16
model.family: infinity -> ""
schedule: 13 scales -> 12 scales
schedule, scale 11: 40x40 -> 36x40
schedule, scale 13: 64x64 -> absent
tile: [8, 16] -> [8, 8]
decision_scale: 11 -> 10
output_correction: false -> true
layers 0-1: dense -> cs4a
layers 3, 5-6: cs4a -> csla
layer 9: csla -> dense
cs4a, scale 11 (36x40): added (budget 0.5, window none)
cs4a, scale 12 (48x48): budget 0.2 -> 0.25; window 9 -> 7
cs4a, scale 13 (64x64): removed (budget 0.2, window 7)
csla, scale 12 (48x48): window at scale 9 (24x24) 1 -> none; window at scale 11 (36x40) 3 -> 5
csla, scale 13 (64x64): removed (window 1 at scale 9, window 1 at scale 10, window 3 at scale 11, \
window 5 at scale 12, window 7 at scale 13)
thresholds.tau: null -> 0.4
measured.psnr_db: absent -> 33.5
provenance.calibrated: false -> true
provenance.note: made by rule, not calibrated: measure it before you trust it -> two\\nlines
provenance.details.prompts: absent -> 50"""


def test_golden() -> None:
    before = infinity_plan()
    after = before.replace(
        name="tuned",
        model={**before.model.model_dump(), "dtype": "float16", "family": ""},
        schedule=[*INFINITY[:10], (36, 40), (48, 48)],
        tile=(8, 8),
        decision_scale=10,
        output_correction=True,
        layers=["cs4a"] * 3 + ["csla", "cs4a", "csla", "csla", "csla", "csla", "dense"],
        cs4a={11: {"budget": 0.5}, 12: {"budget": 0.25, "window": 7}},
        csla={12: {"windows": {10: 1, 11: 5, 12: 5}}},
        thresholds={"tau": 0.4},
        measured={"psnr_db": 33.5},
        provenance={"calibrated": True, "note": "two\nlines", "details": {"prompts": "50"}},
    )
    changes = diff(before, after)
    assert str(changes) == GOLDEN.replace("two\\nlines", '"two\\nlines"')
    assert changes
    assert diff(after, before)


@settings(max_examples=30)
@given(plans(), plans())
def test_empty_exactly_when_equal(a: Plan, b: Plan) -> None:
    assert str(diff(a, a)) == ""
    assert not diff(a, Plan.loads(a.dumps()))
    assert bool(diff(a, b)) == (a != b)
    for line in diff(a, b).lines:
        assert "\n" not in line
