"""Public models that do not draw their last scales: what their own code has accumulated until then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sparvar
from sparvar.errors import OptionError
from tests.upstream import hart_models, infinity_models, var_models
from tests.upstream.checkouts import family_imports
from tests.upstream.support import Case, attached

pytestmark = pytest.mark.upstream
SIDES = (1, 2, 3, 5, 8)
HART_SIDES = (1, 2, 3, 4, 5, 7, 9, 12)


@pytest.fixture(scope="module", autouse=True)
def family() -> Iterator[None]:
    """Every test here imports its own family."""
    yield


def skipping(case: Case, last: int, **fields: Any) -> Any:
    return case.plan(dense=True).replace(skip={"last": last}, **fields)


@contextmanager
def accumulated(quantiser: Any) -> Iterator[list[Tensor]]:
    """Copies of the features after every scale that a generation hands to the quantiser."""
    seen: list[Tensor] = []
    own = quantiser.get_next_autoregressive_input

    def keep(*args: Any, **kwargs: Any) -> Any:
        found = own(*args, **kwargs)
        seen.append(found[0].clone())
        return found

    quantiser.get_next_autoregressive_input = keep
    try:
        yield seen
    finally:
        del quantiser.get_next_autoregressive_input


@pytest.mark.parametrize("given", [{}, {"labels": 3, "more_smooth": True, "top_k": 9}, {"labels": None, "seed": None}])
def test_var(given: dict[str, Any]) -> None:
    with family_imports("VAR"):
        case = var_models.var(SIDES, depth=2)
        torch.manual_seed(3)
        with accumulated(case.model.vae_quant_proxy[0]) as seen:
            case.run(batch=2, **given)
        for last in (1, 3):
            with attached(case, skipping(case, last)):
                torch.manual_seed(3)
                found = case.run(batch=2, **given)
            torch.testing.assert_close(found, (seen[len(SIDES) - 1 - last] + 1) / 2, rtol=0, atol=1e-5)


def test_hart() -> None:
    with family_imports("hart"), hart_models.cuda_is_the_cpu():
        case = hart_models.hart(HART_SIDES, depth=2)
        with accumulated(case.model.vae_quant_proxy[0]) as seen:
            case.run(prompt=hart_models.text(2))
        with attached(case, skipping(case, 2)):
            found = case.run(prompt=hart_models.text(2))
        torch.testing.assert_close(found, (seen[len(HART_SIDES) - 3] + 1) / 2, rtol=0, atol=1e-4)
        with (
            attached(case, skipping(case, 1)),
            pytest.raises(OptionError, match="argument num_maskgit_iters: must be 1"),
        ):
            case.run(num_maskgit_iters=4)


def test_infinity_ends_as_its_own_truncated_loop() -> None:
    with family_imports("Infinity"):
        case = infinity_models.infinity(depth=2)
        scales = len(case.schedule)
        given: dict[str, Any] = {"prompt": infinity_models.text((3, 6)), "image": True, "seed": 5, "cfg_layer": -1}
        for last in (1, 2):
            own = case.run(**given, trunk_scale=scales - last)
            with attached(case, skipping(case, last)):
                found = case.run(**given)
            assert own is not None and found is not None and own.shape == found.shape
            assert (own - found).abs().max() <= 1 and (own != found).float().mean() < 0.01  # bytes
        with attached(case, skipping(case, 1)), pytest.raises(OptionError, match="argument trunk_scale: must be 1000"):
            case.run(**given, trunk_scale=2)


def test_flexvar_enlarges_what_the_last_drawn_scale_predicts() -> None:
    with family_imports("FlexVAR"):
        case = var_models.flexvar(depth=2, sides=SIDES)
        vae: Any = case.vae
        vae.decode = lambda grid: grid
        book = vae.quantize.embedding.weight
        # The model's input for the last scale is the same grid, before its word embedding.
        seen: list[Tensor] = []
        handle = case.model.word_embed.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
        try:
            case.run(batch=2)
        finally:
            handle.remove()
        with attached(case, skipping(case, 1)):
            found = case.run(batch=2)
        expected = seen[-1].transpose(1, 2).reshape(2, -1, SIDES[-1], SIDES[-1])
        assert F.normalize(book, dim=-1).shape[1] == expected.shape[1]
        torch.testing.assert_close(found, expected.clamp(-1, 1), rtol=0, atol=1e-5)


COLLABORATING: dict[str, Callable[[], tuple[Case, dict[str, Any]]]] = {
    "VAR": lambda: (var_models.var(SIDES, depth=2), {"B": 2, "label_B": torch.tensor([1, 4]), "g_seed": 9}),
    "hart": lambda: (
        hart_models.hart(HART_SIDES, depth=2),
        {"B": 1, **hart_models.text(1), "g_seed": 9, "final_stage": 1},
    ),
}


@pytest.mark.parametrize("name", COLLABORATING)
def test_a_model_that_collaborates_with_itself(name: str) -> None:
    with family_imports(name), hart_models.cuda_is_the_cpu():
        case, given = COLLABORATING[name]()
        case.run()  # features in place of images from now on
        own = case.model.autoregressive_infer_cfg(**given)  # type: ignore[operator]
        found = sparvar.collaborate(case.model, case.model, handover=3)(**given)
        torch.testing.assert_close(found, own, rtol=0, atol=1e-4)
