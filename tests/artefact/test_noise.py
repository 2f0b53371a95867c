"""NumPy's noise and torch's: the same bits for every distribution, seed, shape and order of draws."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparvar.artefact.execution.mersenne import Generator, _fused, _rounded
from sparvar.artefact.execution.noise import NumpyNoiseStream, TorchNoiseStream, image_seeds, numpy_noise, torch_noise
from sparvar.artefact.manifest.schema import NoiseSpec
from sparvar.errors import ArtefactError, OptionError

SEEDS = [0, 1, 7, 2**31, 2**32 - 1, 2**32, 2**32 + 7, 2**63, 2**64 - 2, -1, -7, -(2**32), -(2**63)]
DISTRIBUTIONS = ["uniform", "exponential", "normal"]
# Lengths around the 16 numbers from which torch draws normal numbers otherwise, and the 624 words of the engine.
LENGTHS = [0, 1, 3, 15, 16, 17, 31, 32, 33, 623, 624, 625, 1249]
# torch's normal numbers depend on the vector unit: what is reproduced are its builds for AVX2 and more.
AVX2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
needs_avx2 = pytest.mark.skipif(not AVX2, reason="torch takes other logarithms on processors without AVX2")


def drawn(distribution: str, shape: tuple[int, ...], generator: torch.Generator) -> np.ndarray:
    if distribution == "uniform":
        return torch.rand(shape, generator=generator).numpy()
    if distribution == "normal":
        return torch.randn(shape, generator=generator).numpy()
    return torch.empty(shape).exponential_(generator=generator).numpy()


def assert_same_bits(actual: np.ndarray, expected: np.ndarray, distribution: str = "uniform") -> None:
    assert actual.dtype == expected.dtype == np.float32
    assert actual.shape == expected.shape
    if distribution == "normal" and not AVX2 and actual.size >= 16:
        # Two logarithms, sines and cosines, each within 2 units in the last place, under a square root of up to
        # -2 log 2**-24: 8 roundings of numbers up to 5.77.
        assert np.abs(actual - expected).max() <= 8 * 5.77 * 2.0**-24
        return
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_seed(distribution: str, seed: int) -> None:
    expected = drawn(distribution, (3, 50), torch.Generator().manual_seed(seed))
    assert_same_bits(getattr(Generator(seed), distribution)((3, 50)), expected, distribution)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_every_length_one_after_the_other(distribution: str) -> None:
    ours, theirs = Generator(3), torch.Generator().manual_seed(3)
    for length in LENGTHS + LENGTHS[::-1]:
        assert_same_bits(getattr(ours, distribution)((length,)), drawn(distribution, (length,), theirs), distribution)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_many(distribution: str) -> None:
    shape = (300_007,)
    expected = drawn(distribution, shape, torch.Generator().manual_seed(11))
    assert_same_bits(getattr(Generator(11), distribution)(shape), expected, distribution)


@given(
    st.integers(-(2**63), 2**64 - 4),
    st.lists(
        st.tuples(st.sampled_from(DISTRIBUTIONS), st.lists(st.integers(0, 7), max_size=4), st.booleans()), max_size=8
    ),
    st.randoms(use_true_random=False),
)
def test_every_order_of_draws(seed: int, draws: list[tuple[str, list[int], bool]], random: object) -> None:
    specs = [
        NoiseSpec(f"noise/{index}", (3, *shape) if each else tuple(shape), "float32", distribution, each)
        for index, (distribution, shape, each) in enumerate(draws)
    ]
    ours, theirs = NumpyNoiseStream(specs, seed, 3), TorchNoiseStream(specs, seed, 3)
    asked = list(specs)
    random.shuffle(asked)  # type: ignore[attr-defined]
    generators = [torch.Generator().manual_seed(value) for value in range(seed, seed + 3)]
    expected = {spec.name: torch_noise(spec, generators).numpy() for spec in specs}
    for spec in asked:
        assert_same_bits(theirs.next(spec.name).numpy(), expected[spec.name])
        assert_same_bits(ours.next(spec.name), expected[spec.name], spec.distribution)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_each_image_has_the_noise_that_it_has_alone(distribution: str) -> None:
    def stream(images: int, seed: int) -> NumpyNoiseStream:
        shapes = [(images, 2, 3), (images, 1), (images, 20)]
        specs = [NoiseSpec(f"noise/{i}", shape, "float32", distribution, True) for i, shape in enumerate(shapes)]
        return NumpyNoiseStream(specs, seed, images)

    together, alone = stream(3, 5), [stream(1, seed) for seed in (5, 6, 7)]
    for name in ("noise/0", "noise/1", "noise/2"):
        assert_same_bits(together.next(name), np.concatenate([one.next(name) for one in alone]))


def test_a_name_is_handed_out_once() -> None:
    specs = [NoiseSpec(f"noise/{index}", (2,), "float32", "uniform", False) for index in range(3)]
    for stream in (NumpyNoiseStream(specs, 0, 1), TorchNoiseStream(specs, 0, 1)):
        stream.next("noise/1")
        for name in ("noise/1", "noise/9"):
            with pytest.raises(ArtefactError, match="must be noise of this run that was not taken yet"):
                stream.next(name)
        stream.next("noise/0")
        stream.next("noise/2")


@pytest.mark.parametrize("seed", [-(2**63) - 1, 2**64, 2**64 - 1, 1.0, True, None, "1"])
def test_what_is_no_seed(seed: object) -> None:
    for stream in (NumpyNoiseStream, TorchNoiseStream):
        with pytest.raises(OptionError, match=r"seed: must be an integer from -2 \*\* 63 to 2 \*\* 64 - 1"):
            stream([], seed, 2)  # type: ignore[arg-type]


def test_torch_takes_the_same_seeds() -> None:
    assert image_seeds(2**64 - 2, 2) == [2**64 - 2, 2**64 - 1]
    for seed in (2**64 - 1, -(2**63)):
        torch.Generator().manual_seed(seed)
    for seed in (2**64, -(2**63) - 1):
        with pytest.raises((RuntimeError, ValueError)):
            torch.Generator().manual_seed(seed)


def test_the_first_axis_counts_images() -> None:
    spec = NoiseSpec("noise/1", (2, 4), "float32", "uniform", True)
    with pytest.raises(ArtefactError, match=r"noise/1: must begin with the number of images, 1, got \[2, 4\]"):
        numpy_noise(spec, [Generator(0)])
    with pytest.raises(ArtefactError, match="must begin with the number of images, 1"):
        torch_noise(spec, [torch.Generator()])


def test_torch_defaults_do_not_matter() -> None:
    spec = NoiseSpec("noise/1", (40,), "float32", "normal", False)
    expected = TorchNoiseStream([spec], 1, 1).next("noise/1")
    torch.set_default_dtype(torch.float64)
    try:
        actual = TorchNoiseStream([spec], 1, 1).next("noise/1")
    finally:
        torch.set_default_dtype(torch.float32)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


def test_fused_rounds_once() -> None:
    random = np.random.default_rng(0)
    a, b, c = (random.standard_normal(20_000).astype(np.float32) for _ in range(3))
    c = np.where(random.random(20_000) < 0.5, c, -(a * b))  # half of the sums cancel
    found = _fused(a, b, c)
    below, above = np.nextafter(found, np.float32(-np.inf)), np.nextafter(found, np.float32(np.inf))
    for x, y, z, *near in zip(*(array.tolist() for array in (a, b, c, found, below, above)), strict=True):
        wanted = Fraction(x) * Fraction(y) + Fraction(z)
        error, *others = (abs(Fraction(value) - wanted) for value in near)
        assert error <= min(others)


def test_results_near_the_middle_of_two_floats_are_computed_again() -> None:
    middle = 1.0 + 2.0**-24
    values = np.array([middle, np.nextafter(middle, 2.0), middle + 2.0**-30, 1.0, 0.0])
    asked: list[int] = []

    def exactly(index: int) -> float:
        asked.append(int(index))
        return 3.0

    assert _rounded(values, exactly).tolist() == [3.0, 3.0, 1.0 + 2.0**-23, 1.0, 0.0]
    assert asked == [0, 1]
