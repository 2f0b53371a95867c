from __future__ import annotations

from sparvar.evaluate.timing import Spread, interleave, ratio


def test_spread_of_few_and_many() -> None:
    assert Spread.of([3.0]).as_dict() == {"median": 3.0, "q25": 3.0, "q75": 3.0, "iqr": 0.0, "n": 1}
    assert Spread.of([4.0, 1.0, 3.0, 2.0, 5.0]).as_dict() == {"median": 3.0, "q25": 2.0, "q75": 4.0, "iqr": 2.0, "n": 5}
    assert ratio([2.0, 9.0], [1.0, 3.0]).median == 2.5


def test_variants_take_turns_after_a_warm_up() -> None:
    seen: list[str] = []
    seconds = interleave({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, rounds=2)
    assert seen == ["a", "b", "a", "b", "a", "b"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
