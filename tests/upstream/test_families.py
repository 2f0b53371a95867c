"""Public models as programs on explicit state: the images of their own generation methods, from the same seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparvar.errors import CaptureError, OptionError
from sparvar.models import Family, family_of
from sparvar.runtime.generation_loop import run_family
from tests.export.programs import block_sources, chain, number
from tests.upstream import hart_models, infinity_models, var_models
from tests.upstream.checkouts import family_imports

pytestmark = pytest.mark.upstream

SIDES = (1, 2, 3, 5, 8)
HART_SIDES = (1, 2, 3, 4, 5, 7, 9, 12)


@pytest.fixture(scope="module", autouse=True)
def family() -> Iterator[None]:
    """Every test here imports its own family."""
    yield


def var(images: int = 2, shared_aln: bool = False, **settings: Any) -> Family:
    return family_of(var_models.var(SIDES, depth=2, shared_aln=shared_aln).model, images, **settings)


def flexvar(images: int = 2, **settings: Any) -> Family:
    case = var_models.flexvar(depth=2)
    return family_of(case.model, images, **{"vqvae": case.vae, "infer_patch_nums": SIDES, **settings})


def infinity(images: int = 2, changes: dict[str, Any] | None = None, options: Any = None, **settings: Any) -> Family:
    case = infinity_models.infinity(**(options or {}))
    for name, value in (changes or {}).items():
        setattr(case.model, name, value)
    scales = infinity_models.schedule()
    return family_of(case.model, images, **{"vae": case.vae, "scale_schedule": scales, "text_tokens": 6, **settings})


def hart(images: int = 2, **settings: Any) -> Family:
    return family_of(hart_models.hart(HART_SIDES, depth=2).model, images, **settings)


def class_inputs(family: Family, cfg: float = 1.5) -> dict[str, Tensor]:
    return {"labels": torch.arange(3, 3 + family.images), "cfg": number(cfg)}


def text_inputs(family: Family, lengths: Sequence[int] = (6, 6), **numbers: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    given = {name: number(value) for name, value in {"cfg": 3.0, "tau": 0.5, **numbers}.items()}
    for item in family.inputs:
        if item.name in ("text", "negative"):
            given[item.name] = torch.randn(item.shape, generator=generator)
        elif item.kind == "tensor":
            given[item.name] = torch.tensor(lengths)
    return {item.name: given[item.name] for item in family.inputs}


def hart_inputs(family: Family, cfg: float = 4.5) -> dict[str, Tensor]:
    prompt = hart_models.text(family.images, length=40)
    return {"text": prompt.pop("label_B"), **prompt, "cfg": number(cfg)}


def assert_images(family: Family, inputs: dict[str, Tensor], seed: int = 11, atol: float = 1e-5) -> None:
    assert [item.name for item in family.inputs] == list(inputs)
    assert [tuple(x.shape) for x in inputs.values()] == [item.shape for item in family.inputs]
    with torch.no_grad():
        own = family.generate(inputs, seed)
        other = family.generate(inputs, seed + 1)
    found = run_family(family, inputs, seed)
    assert own.dtype == found.dtype == torch.float32 and own.min() >= 0 and own.max() <= 1
    torch.testing.assert_close(found, own, rtol=0, atol=atol)
    assert not torch.allclose(own, other, rtol=0, atol=1e-2)  # the seed matters, so that the noise does


VAR_SETTINGS = [{}, {"top_k": 20, "top_p": 0.9}, {"more_smooth": True, "top_k": 30}, {"shared_aln": True}]


@pytest.mark.parametrize("settings", VAR_SETTINGS)
def test_var(settings: dict[str, Any]) -> None:
    with family_imports("VAR"):
        family = var(**settings)
        assert family.schedule == tuple((side, side) for side in SIDES) and family.rows == 4
        assert_images(family, class_inputs(family))
        assert_images(family, class_inputs(family, cfg=4.0))


FLEXVAR_SETTINGS = [
    {},
    {"top_k": 20, "top_p": 0.9},
    {"used_llamagen_cfg": True, "invalid_ids": [3, 17]},
    {"infer_patch_nums": (1, 2, 4, 7, 12), "max_pn": 8},
]


@pytest.mark.parametrize("settings", FLEXVAR_SETTINGS)
def test_flexvar(settings: dict[str, Any]) -> None:
    with family_imports("FlexVAR"):
        family = flexvar(**settings)
        assert_images(family, class_inputs(family, cfg=2.5))


HEADS: dict[str, tuple[Callable[[], Family], Callable[[Family], dict[str, Tensor]]]] = {
    "VAR": (var, class_inputs),
    "FlexVAR": (flexvar, class_inputs),
    "Infinity": (infinity, text_inputs),
    "hart": (hart, hart_inputs),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_work_on_each_token_alone(name: str) -> None:
    """So where pruning copies what the last block gave, it copies logits (SparseVAR)."""
    make, inputs = HEADS[name]
    with family_imports(name), hart_models.cuda_is_the_cpu(), torch.no_grad():
        family = make()
        condition = family.begin(inputs(family))["condition"]
        x = torch.randn(family.rows, 12, family.model.C, generator=torch.Generator().manual_seed(1))
        logits = family.model.get_logits(x, condition)
        copies = torch.tensor([5, 0, 0, 11, 5])
        found = family.model.get_logits(x[:, copies], condition)
        torch.testing.assert_close(found, logits[:, copies], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(logits[:, 5], logits[:, 0], atol=1e-2)


GUIDANCE = [3.0, 2.5, 1.0, 2.0, 1.0, 1.5, 1.0]
INFINITY_SETTINGS: list[dict[str, Any]] = [
    {},
    {"top_k": 1},
    {"cfg_list": GUIDANCE, "tau_list": [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]},
    {"cfg_list": [1.0] * 7},
    {"cfg_list": GUIDANCE, "cfg_insertion_layer": (-2,)},
    {"cfg_insertion_layer": (0, -1, -3), "changes": {"add_lvl_embeding_only_first_block": 0}},
    {"negative": True},
    {"images": 1, "options": {"apply_spatial_patchify": 1}},
]


@pytest.mark.parametrize("settings", INFINITY_SETTINGS)
def test_infinity(settings: dict[str, Any]) -> None:
    with family_imports("Infinity"):
        family = infinity(**settings)
        assert family.rows == family.images * (1 if settings.get("cfg_list") == [1.0] * 7 else 2)
        if settings.get("top_k") == 1:  # every bit is the likelier one
            with torch.no_grad():
                inputs = text_inputs(family)
                torch.testing.assert_close(run_family(family, inputs, 1), family.generate(inputs, 2), rtol=0, atol=1e-5)
        else:
            assert_images(family, text_inputs(family, (6, 6)[: family.images]))


def test_infinity_with_prompts_shorter_than_the_padding() -> None:
    with family_imports("Infinity"):
        family = infinity()
        inputs = text_inputs(family, lengths=(2, 5))
        assert_images(family, inputs)
        scribbled = dict(inputs)
        scribbled["text"] = inputs["text"].clone()
        scribbled["text"][0, 2:], scribbled["text"][1, 5:] = 1e3, -1e3
        assert torch.equal(run_family(family, scribbled, 3), run_family(family, inputs, 3))


HART_SETTINGS = [{}, {"top_p": 0.9}, {"more_smooth": True}, {"final_stage": 1}]


@pytest.mark.parametrize("settings", HART_SETTINGS)
def test_hart(settings: dict[str, Any]) -> None:
    with family_imports("hart"), hart_models.cuda_is_the_cpu():
        family = hart(**settings)
        assert family.prefix == 300 and family.schedule[0] == (2, 2) and list(family.scales)[:2] == [0, 1]
        # A scale's level is embedded once, and of the text's logits only the last token's are computed: last digits
        # differ, by 1e-5 in the image; smoothing divides logits by temperatures down to 0.005.
        assert_images(family, hart_inputs(family), atol=1e-3 if settings.get("more_smooth") else 5e-5)


MADE: dict[str, tuple[Callable[..., Family], Callable[[Family], dict[str, Tensor]]]] = {
    "VAR": (lambda: var(1, more_smooth=True, top_p=0.9), class_inputs),
    "FlexVAR": (lambda: flexvar(1, top_k=20, top_p=0.9, invalid_ids=[3]), class_inputs),
    "Infinity": (lambda: infinity(1), lambda family: text_inputs(family, (5,))),
    "hart": (lambda: hart(1, top_p=0.9), hart_inputs),
}


@pytest.mark.parametrize("name", MADE)
def test_begin_leave_and_decode_go_through_export(name: str) -> None:
    with family_imports(name):
        make, given = MADE[name]
        family = make()
        inputs = given(family)
        with family.functional():
            expected, expected_states = chain(family, inputs, 5)
            image, states = chain(family, inputs, 5, through_export=True)
        assert [set(state) for state in states] == [set(state) for state in expected_states]
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-5)


def _differences(family: Family, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The first blocks' output, as the model computes it and with tensor functions."""
    found = []
    with torch.no_grad():
        for functional in (False, True):
            family.caching(True)
            if functional:
                with family.functional():
                    state = family.begin(inputs)
                    found.append(family.call_block(0, state["x"], state, family.scales[0]))
            else:
                state = family.begin(inputs)
                found.append(family.call_block(0, state["x"], state, family.scales[0]))
            family.caching(False)
    return found[0], found[1]


@pytest.mark.parametrize("name", ["Infinity", "hart"])
def test_functional_computes_the_same_and_leaves_the_model_as_it_was(name: str) -> None:
    with family_imports(name):
        make, given = MADE[name]
        family = make()
        before = _wired(family.model)
        own, functional = _differences(family, given(family))
        # Cross-attention rounds to bf16 in both, so that a last digit of one may differ.
        torch.testing.assert_close(functional, own, rtol=0, atol=1e-5 if name == "hart" else 2e-2)
        with pytest.raises(ZeroDivisionError), family.functional():
            assert _wired(family.model) != before
            raise ZeroDivisionError
        assert _wired(family.model) == before


def _wired(model: nn.Module) -> list[object]:
    """What a model's modules call: their classes' forward, its kernel and NumPy, their fused norms."""
    found: list[object] = []
    for module in model.modules():
        forward = type(module).forward
        names = getattr(forward, "__globals__", {})
        found += [forward, getattr(module, "fused_norm_func", None)]
        found += [names.get(name) for name in ("flash_attn_varlen_kvpacked_func", "np")]
    return found


@pytest.mark.parametrize("name", MADE)
def test_a_block_takes_its_values_by_these_sources(name: str) -> None:
    with family_imports(name):
        make, given = MADE[name]
        family = make()
        assert family.layers == len(family.blocks) and family.block(1) is family.blocks[1]
        found = block_sources(family, given(family), family.scales[:3])
        constants = {source for source in found if source.startswith("L['rope2d_freqs_grid']")}
        assert found - constants == set(family.block_values)
        assert bool(constants) == (name == "Infinity")


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("VAR", lambda: var(top_k=65), r"top_k: must be 0 \(all\) to 64"),
        ("FlexVAR", lambda: flexvar(infer_patch_nums=(2, 3)), "begin with a grid of 1 tokens"),
        ("FlexVAR", lambda: flexvar(infer_patch_nums=(1,)), "two or more whole numbers"),
        ("Infinity", lambda: infinity(scale_schedule=[(1, 1, 1), (1, 2, 2)]), "schedules that the model has positions"),
        ("Infinity", lambda: infinity(cfg_list=[3.0]), "cfg_list: must have 7 numbers, one per scale, got 1"),
        ("Infinity", lambda: infinity(cfg_insertion_layer=(-4,)), r"0 \(logits\) or -1 to -3"),
        ("Infinity", lambda: infinity(text_tokens=65), "text_tokens: must be 1 to 64"),
        ("hart", lambda: hart(top_p=-1.0), "top_p: must be"),
        ("hart", lambda: hart(num_maskgit_iters=4), "must be among top_p, more_smooth, final_stage, got num_maskgit"),
    ],
)
def test_a_wrong_setting_is_named(name: str, make: Callable[[], Family], says: str) -> None:
    with family_imports(name), pytest.raises(OptionError, match=says):
        make()


def test_the_tokenizer_must_be_given_where_the_model_does_not_hold_it() -> None:
    with family_imports("FlexVAR"):
        model = var_models.flexvar(depth=2).model
        with pytest.raises(OptionError, match="settings of the flexvar family: must give vqvae, got nothing"):
            family_of(model)
        with pytest.raises(CaptureError, match="flexvar family, vqvae: must have decode_code"):
            family_of(model, vqvae=nn.Linear(2, 2))


def test_a_model_that_lacks_something_is_refused_with_what() -> None:
    with family_imports("VAR"):
        model = var_models.var(SIDES, depth=2).model
        del model.word_embed
        with pytest.raises(CaptureError, match=r"var family, VAR: .*none of word_embed"):
            family_of(model)
