"""The random numbers of a generation: from torch's generators, or the same from NumPy where there is no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sparvar.artefact.manifest.schema import NoiseSpec
from sparvar.errors import ArtefactError, OptionError, message

if TYPE_CHECKING:
    import numpy as np
    import torch

    from sparvar.artefact.execution.mersenne import Generator

Array = TypeVar("Array")
Source = TypeVar("Source")


def image_seeds(seed: int, images: int) -> list[int]:
    """The seeds of the images' generators: ``seed``, ``seed + 1``, ...

    Raises `OptionError` unless all are what ``torch.Generator.manual_seed`` takes: from -2 ** 63 to 2 ** 64 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed <= 2**64 - images:
        must = "be an integer from -2 ** 63 to 2 ** 64 - 1, that of the last image too"
        raise OptionError(message("seed", must, repr(seed)))
    return [seed + image for image in range(images)]


def torch_noise(spec: NoiseSpec, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Draw the tensor on the CPU: image i from generator i where ``spec.per_image``, all from the first otherwise."""
    import torch

    if spec.per_image:
        _check_images(spec, len(generators))
        one = replace(spec, shape=spec.shape[1:], per_image=False)
        return torch.stack([torch_noise(one, [generator]) for generator in generators])
    value = torch.empty(spec.shape, dtype=torch.float32, device="cpu")
    if spec.distribution == "uniform":
        return value.uniform_(generator=generators[0])
    if spec.distribution == "normal":
        return value.normal_(generator=generators[0])
    return value.exponential_(generator=generators[0])


def numpy_noise(spec: NoiseSpec, generators: Sequence[Generator]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """`torch_noise` without torch: the same bits (`sparvar.artefact.execution.mersenne` says where they may differ)."""
    import numpy as np

    if spec.per_image:
        _check_images(spec, len(generators))
        one = replace(spec, shape=spec.shape[1:], per_image=False)
        return np.stack([numpy_noise(one, [generator]) for generator in generators])
    if spec.distribution == "uniform":
        return generators[0].uniform(spec.shape)
    if spec.distribution == "normal":
        return generators[0].normal(spec.shape)
    return generators[0].exponential(spec.shape)


def _check_images(spec: NoiseSpec, images: int) -> None:
    if spec.shape[:1] != (images,):
        raise ArtefactError(message(spec.name, f"begin with the number of images, {images}", list(spec.shape)))


class NoiseStream(Generic[Array]):
    """The noise of one run, handed out by name.

    It is drawn in the order of ``specs``, whatever the order in which it is asked for: what is passed over is drawn
    and kept. Each is handed out once.
    """

    def __init__(self, specs: Sequence[NoiseSpec], draw: Callable[[NoiseSpec], Array]) -> None:
        self._draw = draw
        self._waiting = list(specs)
        self._drawn: dict[str, Array] = {}

    def next(self, name: str) -> Array:
        """The tensor ``name``. Raises `ArtefactError` where there is none, or it has been handed out."""
        if name not in self._drawn and all(spec.name != name for spec in self._waiting):
            raise ArtefactError(message(name, "be noise of this run that was not taken yet", "another name"))
        while name not in self._drawn:
            spec = self._waiting.pop(0)
            self._drawn[spec.name] = self._draw(spec)
        return self._drawn.pop(name)


class TorchNoiseStream(NoiseStream["torch.Tensor"]):
    """A run's noise as torch draws it on the CPU."""

    def __init__(self, specs: Sequence[NoiseSpec], seed: int, images: int) -> None:
        """Raises `OptionError` where ``seed`` is no seed."""
        import torch

        generators = [torch.Generator().manual_seed(value) for value in image_seeds(seed, images)]
        super().__init__(specs, lambda spec: torch_noise(spec, generators))


class NumpyNoiseStream(NoiseStream["np.ndarray[Any, np.dtype[np.float32]]"]):
    """A run's noise without torch."""

    def __init__(self, specs: Sequence[NoiseSpec], seed: int, images: int) -> None:
        """Raises `OptionError` where ``seed`` is no seed."""
        from sparvar.artefact.execution.mersenne import Generator

        generators = [Generator(value) for value in image_seeds(seed, images)]
        super().__init__(specs, lambda spec: numpy_noise(spec, generators))
