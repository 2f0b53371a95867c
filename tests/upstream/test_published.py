"""The plans that ship for published models are found for the real classes at their real widths."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sparvar.scale_plans import find_published, published_models
from tests.upstream import hart_models, infinity_models, var_models
from tests.upstream.checkouts import FAMILIES, family_imports
from tests.upstream.support import Case

pytestmark = pytest.mark.upstream

NAMES = {
    "VAR": ["var-d16", "var-d24"],
    "FlexVAR": ["var-d16"],
    "Infinity": ["infinity-125m", "infinity-layer24", "infinity-2b"],
    "hart": ["hart-0.7b"],
}


@pytest.fixture(scope="module", autouse=True)
def family() -> Iterator[None]:
    """Every test here imports its own family."""
    yield


def two_layers(family: str, name: str) -> Case:
    model = published_models()[name]
    heads = model.width // model.head_dim
    if family == "VAR":
        return var_models.var(depth=1, heads=heads)
    if family == "FlexVAR":
        return var_models.flexvar(depth=1, heads=heads)
    if family == "hart":
        return hart_models.hart(depth=1, heads=heads)
    return infinity_models.infinity(depth=2, heads=heads, head_dim=model.head_dim, chunks=2)


def in_full_depth(case: Case, family: str, name: str) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all blocks' parameters, from those of the first: blocks of one model are alike."""
    model = published_models()[name]
    first = case.sites[0].rpartition(".")[0] + "."
    block = [(key[len(first) :], tuple(p.shape)) for key, p in case.model.named_parameters() if key.startswith(first)]
    return [(f"{site.rpartition('.')[0]}.{key}", shape) for site in model.sites for key, shape in block]


@pytest.mark.parametrize(("family", "name"), [(family, name) for family, names in NAMES.items() for name in names])
def test_found_by_the_parameters_of_its_blocks(family: str, name: str) -> None:
    reason = FAMILIES[family].missing()
    if reason is not None:
        pytest.skip(reason)
    with family_imports(family):
        case = two_layers(family, name)
        plans = find_published(in_full_depth(case, family, name))
        assert plans is not None and plans.name == name
        assert plans.model.heads == case.heads and plans.model.head_dim == case.head_dim
        assert [site.rpartition(".")[2] for site in plans.model.sites[:1]] == [case.sites[0].rpartition(".")[2]]
