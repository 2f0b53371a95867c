"""Plans as text: byte-stable round trips, digests, hand edits, and every problem at once."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparvar.errors import PlanError, PlanWarning
from sparvar.scale_plans import CS4AScale, ModelInfo, Plan, dense_plan, json_schema, model_fingerprint
from sparvar.scale_plans.data import OPTIONAL_FIELDS
from tests.scale_plans.strategies import infinity_plan, plans


def edited(plan: Plan, **fields: Any) -> str:
    raw = {**json.loads(plan.dumps()), **fields}
    return json.dumps(raw)


def problems_of(text: str) -> list[str]:
    with pytest.raises(PlanError) as caught:
        Plan.loads(text)
    return caught.value.problems


@settings(max_examples=60)
@given(plans())
def test_round_trip_is_byte_stable(plan: Plan) -> None:
    text = plan.dumps()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = Plan.loads(text, strict_digest=True)
    assert again == plan
    assert again.dumps() == text
    assert again.digest == plan.digest
    assert max(map(len, text.splitlines())) <= 200


@settings(max_examples=20)
@given(plans())
def test_any_order_and_layout_gives_the_same_plan(plan: Plan) -> None:
    raw = json.loads(plan.dumps())
    shuffled = json.dumps(dict(reversed(raw.items())), ensure_ascii=False, indent=7)
    assert Plan.loads(shuffled, strict_digest=True).dumps() == plan.dumps()


def test_every_prefix_is_refused_and_says_so(tmp_path: Path) -> None:
    data = json.dumps(json.loads(infinity_plan(3, name="étoile").dumps()), ensure_ascii=False).encode()
    path = tmp_path / "plan.json"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(PlanError) as caught:
            Plan.load(path)
        assert str(path) in str(caught.value)
    path.write_bytes(data)
    assert Plan.load(path).name == "étoile"


@settings(max_examples=200)
@given(st.text() | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_any_text_is_a_plan_or_a_plan_error(text: str) -> None:
    with pytest.raises(PlanError):
        Plan.loads(text)


@settings(max_examples=200)
@given(st.data())
def test_any_wrong_value_is_a_plan_or_a_plan_error(data: st.DataObject) -> None:
    raw = json.loads(infinity_plan(3).dumps())
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("\ud800"),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["1", "13", "x"]), inner),
        max_leaves=5,
    )
    for field in data.draw(st.sets(st.sampled_from(sorted(raw)), min_size=1, max_size=3)):
        raw[field] = data.draw(values)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PlanWarning)
            plan = Plan.loads(json.dumps(raw))
    except PlanError as error:
        assert error.problems
    else:
        assert Plan.loads(plan.dumps()) == plan


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1 column 1: not valid JSON (Expecting value); the file ends too early; it was cut off"),
        ('{"name": "a",\n "model": tru}', "line 2 column 11: not valid JSON (Expecting value); mend the JSON there"),
        ("[1]", "plan: must be a JSON object, got a list"),
        ('{"name": ' + "[" * 300 + "]" * 300 + "}", "recursion limit exceeded"),
        ("[" * 200_000, "not a plan: nested too deeply"),
        ('{"heads": ' + "9" * 5000 + "}", "not a plan: Exceeds the limit"),
    ],
)
def test_broken_json_names_the_place(text: str, says: str) -> None:
    assert says in problems_of(text)[-1]


def test_every_contradiction_at_once() -> None:
    text = edited(
        infinity_plan(4),
        tiles=[8, 8],
        model={"sites": ["a", "a"], "heads": 0, "head_dim": 100, "dtype": "fp32", "hats": 1},
        schedule=[[1, 1], [2, 2], [4, 4], [8, 8]],
        prefix=-1,
        tile=[0, 16],
        sink_scales=9,
        decision_scale=4,
        index_map="relativ",
        output_correction="yes",
        column_sum_stride=99,
        layers=["dense", "cs4", "csla", "csla", "cs4a"],
        cs4a={
            "2": {"budget": 0.2, "windw": 3},
            "3": {"budget": 1.5, "window": 4},
            "4": {"budget": "much"},
            "7": {"budget": 0},
            "x": {"budget": 0.1},
        },
        csla={"3": {"windows": {"4": 3, "2": 99, "1": 2, "12": 1}}, "14": {}},
        thresholds={"tau": 2, "alpha_min": 0.5, "alpha_max": 0.25},
    )
    assert problems_of(text) == [
        "model.hats: unknown field; did you mean 'heads'? valid: fingerprint, sites, heads, head_dim, dtype, family",
        "index_map: must be 'identity', 'relative' or 'footprint', got \"relativ\"",
        'output_correction: must be a valid boolean, got "yes"',
        "cs4a.2.windw: unknown field; did you mean 'window'? valid: budget, window",
        'cs4a.4.budget: must be a valid number, got "much"',
        "cs4a.x: must be named by a scale number, got 'x'",
        "tiles: unknown field; did you mean 'tile'? valid: schema_version, name, digest, model, schedule, prefix, "
        "tile, sink_scales, decision_scale, index_map, output_correction, column_sum_stride, layers, cs4a, csla, "
        "pruning, guidance, skip, adapt, kv, thresholds, measured, provenance",
        "model.sites: must name every module once, got a more than once",
        "model.heads: must be at least 1, got 0",
        "model.head_dim: must be a multiple of 8 between 8 and 256, got 100",
        "model.dtype: must be one of float32, bfloat16, float16, float64, got 'fp32'",
        "prefix: must be between 0 and 1048576, got -1",
        "tile: must have sides between 1 and 4096, got [0, 16]",
        "sink_scales: must be between 0 and 4, the number of scales, got 9",
        "decision_scale: must be between 1 and 3, got scale 4 (8x8); scales after it reuse its columns, so at least "
        "one must follow",
        "column_sum_stride: must be between 1 and 16, the longer side of the tile, got 99",
        "layers: must have 2 entries, one per site, got 5; give one policy for each module in model.sites",
        "layers, layer 1: must be one of dense, cs4a, csla, got 'cs4'; did you mean 'cs4a'?",
        "cs4a.3.budget: must be above 0 and at most 1, got 1.5",
        "cs4a.3.window: must be odd, or 0 for none, got 4",
        "cs4a.7.budget: must be above 0 and at most 1, got 0.0",
        "cs4a.7: must name a scale between 1 and 4, got scale 7",
        "cs4a.2: must come after the decision scale, 4, got scale 2 (2x2); remove the entry or decide earlier",
        "cs4a.3: must come after the decision scale, 4, got scale 3 (4x4); remove the entry or decide earlier",
        "csla.3.windows.1: must be odd and positive, got 2; leave the scale out for no window",
        "csla.3.windows.1: must be at most 1, which covers all of scale 1 (1x1), got 2",
        "csla.3.windows.2: must be at most 3, which covers all of scale 2 (2x2), got 99",
        "csla.3.windows.4: must lie at or before the scale it is for, 3, got scale 4 (8x8); a scale cannot attend to a "
        "later one",
        "csla.3.windows.12: must name a scale between 1 and 4, got scale 12",
        "csla.14: must name a scale between 1 and 4, got scale 14",
        "thresholds.tau: must be between 0 and 1, got 2.0",
        "thresholds.alpha_min: must be at most alpha_max, 0.25, got 0.5",
    ]


def test_a_broken_schedule_is_reported_once() -> None:
    problems = problems_of(edited(infinity_plan(), schedule=[[1, 1], [0, 2]], prefix=-1))
    assert len(problems) == 2
    assert problems[0] == "schedule, scale 2: must have sides between 1 and 4096, got [0, 2]"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"decision_scale": None}, "decision_scale: must be set where a layer is cs4a, got null with cs4a layers 2-6"),
        ({"cs4a": {}}, "cs4a: must list at least one scale, got none, while layers 2-6 use it"),
        ({"csla": {}}, "csla: must list at least one scale, got none, while layers 7-9 use it"),
        ({"csla": {"13": {}}, "sink_scales": 0}, "csla.13.windows: must name a scale where there are no sinks"),
        ({"decision_scale": 13}, "decision_scale: must be between 1 and 12, got scale 13 (64x64)"),
        ({"measured": {"psnr_db": float("nan")}}, "measured.psnr_db: must be a finite number, got nan"),
        ({"schema_version": 2}, "schema_version: must be 1, got 2; the plan is from a newer sparvar: upgrade sparvar"),
        ({"digest": 7}, "digest: must be text or null, got 7"),
        ({"name": "\ud800"}, "plan: must hold whole Unicode characters, got half of one"),
    ],
)
def test_one_contradiction(fields: dict[str, Any], says: str) -> None:
    assert any(says in problem for problem in problems_of(edited(infinity_plan(), **fields)))


def test_missing_and_repeated_fields() -> None:
    assert problems_of("{}") == [
        "schema_version: must be 1, got nothing",
        *(f"{field}: must be given, got nothing" for field in ("name", "model", "schedule", "sink_scales", "layers")),
    ]
    repeated = infinity_plan().dumps().replace('"prefix": 0', '"prefix": 0, "prefix": 1')
    assert "prefix: must be given once in its object, got more than one value" in problems_of(repeated)


def test_a_hand_edit_works_with_a_warning() -> None:
    plan = infinity_plan()
    text = plan.dumps().replace('"sink_scales": 5', '"sink_scales": 4')
    with pytest.warns(PlanWarning, match=r"digest: must match the content, .*sparvar inspect --rehash"):
        loaded = Plan.loads(text)
    assert loaded.sink_scales == 4
    assert loaded.digest == plan.replace(sink_scales=4).digest != plan.digest
    with pytest.raises(PlanError, match="digest: must match"):
        Plan.loads(text, strict_digest=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Plan.loads(edited(loaded, digest=None), strict_digest=True) == loaded


def test_digest_covers_what_changes_the_computation() -> None:
    plan = infinity_plan()
    assert plan.replace(name="other", measured={"ssim": 0.9}, provenance={"note": "n"}).digest == plan.digest
    changes = {"tile": [4, 4], "prefix": 1, "layers": ["dense"] * 10, "csla": {13: {"windows": {13: 3}}}}
    digests = {plan.digest, *(plan.replace(**{field: value}).digest for field, value in changes.items())}
    assert len(digests) == 5
    assert infinity_plan().digest == plan.digest


def test_replace_takes_python_values_and_refuses_nonsense() -> None:
    plan = infinity_plan()
    changed = plan.replace(cs4a={13: CS4AScale(budget=0.5)}, tile=(4, 4))
    assert changed.cs4a == {13: CS4AScale(budget=0.5)}
    with pytest.raises(PlanError, match="did you mean 'sink_scales'"):
        plan.replace(sink_scale=3)
    with pytest.raises(PlanError, match="replace"):
        plan.replace(name=object())


def test_plans_are_immutable_and_can_be_pickled() -> None:
    plan = infinity_plan()
    with pytest.raises(TypeError, match=r"plan\.replace"):
        plan.cs4a[12] = CS4AScale(budget=1)  # type: ignore[index]
    with pytest.raises(ValueError, match="frozen"):
        plan.prefix = 3  # type: ignore[misc]
    copy = pickle.loads(pickle.dumps(plan))
    assert copy == plan
    assert hash(copy) == hash(plan)


def test_errors_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(PlanError(["a", "b"], "plan.json")))
    assert error.problems == ["a", "b"]
    assert str(error) == "plan.json: 2 problems\n  1. a\n  2. b"


def test_a_contradictory_plan_is_not_written() -> None:
    plan = infinity_plan().model_copy(update={"prefix": -1})
    assert plan.check() == ["prefix: must be between 0 and 1048576, got -1"]
    with pytest.raises(PlanError, match="prefix"):
        plan.dumps()
    assert "it contradicts itself:\n  prefix: must be" in str(plan)


def test_schema_describes_the_file() -> None:
    schema = json_schema()
    written = json.loads(infinity_plan().dumps())
    assert set(written) | set(OPTIONAL_FIELDS) == set(schema["properties"])
    assert set(schema["required"]) == {"schema_version", "name", "model", "schedule", "sink_scales", "layers"}
    assert schema["additionalProperties"] is False
    json.dumps(schema)


def test_fingerprint_depends_on_names_shapes_and_dtype_only() -> None:
    shapes = [("a.weight", (4, 8)), ("b.weight", (2,))]
    one = model_fingerprint(shapes, "float32")
    assert one == model_fingerprint(reversed(shapes), "float32")
    assert one != model_fingerprint(shapes, "bfloat16")
    assert one != model_fingerprint([("a.weight", (8, 4)), ("b.weight", (2,))], "float32")
    assert dense_plan([(1, 1)], ModelInfo(sites=["a"], heads=1, head_dim=8, fingerprint=one)).check() == []
