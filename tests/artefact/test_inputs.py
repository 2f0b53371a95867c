"""What a caller gives: checked, and cut into runs of the programs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from sparvar.artefact.execution.inputs import Request, requests
from sparvar.artefact.manifest.schema import InputSpec, Manifest
from sparvar.errors import ArtefactError
from tests.artefact.factory import artefact

TEXT = (
    InputSpec("text", "tensor", (2, 4, 3), "float32"),
    InputSpec("lengths", "tensor", (2,), "int64"),
    InputSpec("cfg", "number", (), "float64", default=3.0),
)


@pytest.fixture
def classes(tmp_path: Any) -> Manifest:
    return dataclasses.replace(artefact(tmp_path / "a"), images=2)


@pytest.fixture
def prompts(classes: Manifest) -> Manifest:
    return dataclasses.replace(classes, inputs=TEXT)


def runs(manifest: Manifest, *first: Any, seed: Any = 5, **given: Any) -> list[Request]:
    return list(requests(manifest, first, seed, given))


def text(images: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.arange(images * int(np.prod(shape or (4, 3))), dtype=np.float32).reshape(images, *(shape or (4, 3)))


def test_labels_by_name_or_number_are_cut_into_runs(classes: Manifest) -> None:
    found = runs(classes, ["sea", 1, "1"], cfg=4)
    assert [each.values["labels"] for each in found] == [[0, 1], [1, 1]]
    assert [(each.seed, each.wanted) for each in found] == [(5, 2), (7, 1)]
    assert [each.values["cfg"] for each in found] == [4.0, 4.0]


def test_one_label_alone_fills_a_run(classes: Manifest) -> None:
    assert [each.values for each in runs(classes, "mountain")] == [{"labels": [1, 1], "cfg": 2.0}]
    assert runs(classes, labels=[0])[0].wanted == 1


def test_embeddings_are_cut_and_filled_row_by_row(prompts: Manifest) -> None:
    given = text(3)
    found = runs(prompts, given, lengths=np.array([4, 2, 1]))
    assert [each.wanted for each in found] == [2, 1]
    assert np.array_equal(found[0].values["text"], given[:2])
    assert np.array_equal(found[1].values["text"], given[[2, 2]])
    assert found[1].values["lengths"].tolist() == [1, 1] and found[1].values["cfg"] == 3.0


@pytest.mark.parametrize(
    ("first", "given", "says"),
    [
        ((["moon"],), {}, r"input labels: must be a class or its number \(0 sea, 1 mountain\), got 'moon'"),
        (([2],), {}, "got 2"),
        (([-1],), {}, "got -1"),
        (([True],), {}, "got True"),
        (([],), {}, "input labels: must name at least one class, got none"),
        ((), {}, "input labels: must be given, got nothing"),
        (("sea", "sea"), {}, "generate: must be given one input by position, got 2"),
        (("sea",), {"labels": ["sea"]}, "input labels: must be given once"),
        (("sea",), {"cfg": "much"}, "input cfg: must be a number, got 'much'"),
        (("sea",), {"cgf": 3}, "inputs: must be among labels, cfg, got cgf"),
        (("sea",), {"seed": 1.5}, "seed: must be a whole number, got 1.5"),
    ],
)
def test_wrong_labels_and_numbers_are_named(
    classes: Manifest, first: tuple[Any, ...], given: dict[str, Any], says: str
) -> None:
    with pytest.raises(ArtefactError, match=says):
        runs(classes, *first, **given)


@pytest.mark.parametrize(
    ("value", "got"),
    [(text(2, 5, 3), r"\[2, 5, 3\]"), (text(2, 4), r"\[2, 4\]"), (text(0), r"\[0, 4, 3\]"), ([[1.0]], r"\[\]")],
)
def test_an_embedding_of_another_shape_is_named(prompts: Manifest, value: Any, got: str) -> None:
    with pytest.raises(ArtefactError, match=rf"input text: must be a tensor \[images, 4, 3\] of float32, got {got}"):
        runs(prompts, value, lengths=np.array([1, 1]))


def test_inputs_for_different_numbers_of_images(prompts: Manifest) -> None:
    with pytest.raises(ArtefactError, match="for the same number of images, got text 3, lengths 2"):
        runs(prompts, text(3), lengths=np.array([1, 1]))
