"""What a model family must say about its generation so that it can be cut into programs on explicit state.

A generation is ``begin``, then per scale all blocks in order and ``leave``, then ``decode``. The blocks are the
model's own modules and are captured from their forward; the rest is written by the family with the model's
submodules, as functions of tensors only. Whatever the model draws at random comes in as a tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sparvar.errors import CaptureError, OptionError, message

Schedule = tuple[tuple[int, int], ...]
"""(h, w) of every scale."""
State = dict[str, Tensor]
Kind = Literal["class", "number", "tensor"]
Distribution = Literal["uniform", "exponential", "normal"]


@dataclass(frozen=True)
class Input:
    """Something that a caller gives for every generation.

    Attributes:
        name: what a caller says.
        kind: ``class`` (indices, int64), ``number`` (a scalar, float64: Python's own arithmetic) or ``tensor``.
        shape, dtype: of the tensor.
        default: of a number.
        classes: names of the classes in order of their index, where they are known.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    default: float | None = None
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Noise:
    """Random numbers of one scale, drawn in the order in which a family lists them.

    Attributes:
        name: ``noise/SCALE``, or ``noise/SCALE.PART`` where a scale needs several.
        scale: that uses it, one of the family's ``scales``.
        shape, dtype: of the tensor.
        distribution: uniform on [0, 1), exponential with rate 1, or standard normal.
        per_image: the first axis counts images, and image i is drawn from a generator of its own, seeded
            ``seed + i``; otherwise one generator, seeded ``seed``, draws for all.
    """

    name: str
    scale: int
    shape: tuple[int, ...]
    dtype: str = "float32"
    distribution: Distribution = "uniform"
    per_image: bool = False

    def draw(self, generators: Sequence[torch.Generator]) -> Tensor:
        """The numbers, from one generator per image or from the first, on the generator's device."""
        if self.per_image:
            one = replace(self, shape=self.shape[1:], per_image=False)
            return torch.stack([one.draw([generator]) for generator in generators])
        generator, dtype = generators[0], getattr(torch, self.dtype)
        if self.distribution == "uniform":
            return torch.rand(self.shape, generator=generator, dtype=dtype, device=generator.device)
        if self.distribution == "normal":
            return torch.randn(self.shape, generator=generator, dtype=dtype, device=generator.device)
        return torch.empty(self.shape, dtype=dtype, device=generator.device).exponential_(generator=generator)


@dataclass(frozen=True)
class Call:
    """A call of a model's own generation method, as a run of its family.

    Attributes:
        family: of the model, with the settings of the call.
        inputs: of the run.
        draw: the random numbers that the method would draw.
        result: from the images of ``decode`` to what the method returns.
        after: called with the 0-based scale after each, or None.
        grad_mode: the context in which the method runs.
    """

    family: Family
    inputs: State
    draw: Callable[[Noise], Tensor]
    result: Callable[[Tensor], Any] = lambda images: images
    after: Callable[[int], object] | None = None
    grad_mode: Callable[[], AbstractContextManager[Any]] = torch.no_grad


class Family(ABC):
    """A model whose generation is exposed as programs on explicit state.

    Scales are 1-based, layers 0-based; text tokens with a call of their own are scale 0, as in plans. ``begin``,
    ``leave`` and ``decode`` can be traced by ``torch.export``: static shapes, no Python decision on a value, nothing
    kept between calls. Run them without gradients.

    Attributes:
        name: of the family.
        model_class: name of the model's class, which is all that is known of it before it is looked at.
        settings_class: frozen dataclass of what is fixed for all generations, the constructor's third argument.
        needs: attributes, with dots, that a model of this class must have.
        block_values: what a tensor argument of a block's forward is, by its source as Dynamo writes it
            (``L['x']``); tensor arguments that are neither named here nor parameters are constants of the scale.
        model: the model.
        images: images of one run.
        schedule: (h, w) of every scale.
        prefix: text tokens that stand before scale 1 in the blocks' caches; where there are any, they go through the
            blocks, and ``leave``, as scale 0.
        rows: batch rows in the blocks.
        inputs, noise: what a run takes.
        partial: ``decode`` is called before the last scale too, so that ``leave`` keeps what it needs; never in export.
        roots: modules that own the parameters and buffers that programs use, by a name for each.
    """

    name: ClassVar[str]
    model_class: ClassVar[str]
    settings_class: ClassVar[type]
    needs: ClassVar[tuple[str, ...]]
    block_values: ClassVar[Mapping[str, str]]
    shared: ClassVar[tuple[str, ...]] = ()
    """What of the state says which image is drawn so far, and is the same for every model of the tokenizer."""

    model: Any
    images: int
    schedule: Schedule
    prefix: int = 0
    rows: int
    inputs: tuple[Input, ...]
    noise: tuple[Noise, ...]
    partial: bool = False
    roots: Mapping[str, nn.Module]

    def __init__(self, model: nn.Module, images: int = 1) -> None:
        """Check that the model has what the family needs.

        Raises:
            CaptureError: attributes are missing.
            OptionError: ``images`` is below 1.
        """
        if images < 1:
            raise OptionError(message("images", "be at least 1", images))
        self.require(model, type(model).__name__, self.needs)
        self.model, self.images = model, images
        self.roots = {"model": model}

    def require(self, module: object, what: str, needs: Sequence[str]) -> None:
        """Raise `CaptureError` unless ``module`` has the attributes ``needs``, with dots."""
        absent = [path for path in needs if not _has(module, path)]
        if absent:
            subject = f"{self.name} family, {what}"
            raise CaptureError(message(subject, f"have {', '.join(needs)}", f"none of {', '.join(absent)}"))

    @property
    def scales(self) -> range:
        """The scales that go through the blocks, in order."""
        return range(0 if self.prefix else 1, len(self.schedule) + 1)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks in order of execution; the model's ``blocks`` unless the family says otherwise."""
        return list(self.model.blocks)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def block(self, layer: int) -> nn.Module:
        """The block whose forward is captured."""
        return self.blocks[layer]

    @abstractmethod
    def call_block(self, layer: int, x: Tensor, state: State, scale: int) -> Tensor:
        """Call a block as the model does at a scale, with the caches that it keeps itself."""

    def between(self, layer: int, x: Tensor, state: State, scale: int) -> Tensor | None:
        """What the model makes of a block's output before it reaches the next block; None if it leaves it alone."""
        return None

    def caching(self, enable: bool) -> None:
        """Switch the model's own key and value caches on, empty, or off, as VAR's code does."""
        for block in self.model.blocks:
            block.attn.kv_caching(enable)

    @contextmanager
    def functional(self) -> Iterator[None]:
        """Programs are captured inside: the model computes with tensor functions what it leaves to extensions else.

        Not for several threads at once. Outside, the model is as it was.
        """
        yield

    @abstractmethod
    def begin(self, inputs: dict[str, Tensor]) -> State:
        """The state before the first scale, with ``x``, the first block's input [rows, tokens, C]."""

    @abstractmethod
    def leave(self, scale: int, state: State, noise: dict[str, Tensor]) -> State:
        """From the last block's output ``state["x"]`` and the scale's noise to what changes in the state.

        ``x`` is the next scale's input and is missing after the last scale; what does not change is left out. All
        tensors are contiguous, here and in ``begin``.
        """

    def enter(self, scale: int, state: State) -> Tensor:
        """The first block's input of a scale after the first, from what is drawn so far (`shared`).

        Raises:
            CaptureError: the family has no such function.
        """
        raise CaptureError(message(f"{self.name} family", "be entered at a later scale", "a family that starts at 1"))

    @abstractmethod
    def decode(self, state: State) -> Tensor:
        """Images [images, 3, H, W] in [0, 1], float32; of what is drawn so far where the family is ``partial``."""

    @classmethod
    def of_call(cls, model: nn.Module, arguments: Mapping[str, Any]) -> Call:
        """The family, and what its run takes, of a call of the model's own generation method.

        Args:
            model: the model.
            arguments: of the call by name, defaults included.

        Raises:
            OptionError: an argument has a value that the family cannot draw.
            CaptureError: the family maps no calls.
        """
        raise CaptureError(message(f"{cls.name} family", "map calls of the model's generation method", "none"))

    def longest(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inputs with prompts of the length that programs are made for: blocks are recorded at it."""
        return inputs

    @abstractmethod
    def generate(self, inputs: dict[str, Tensor], seed: int) -> Tensor:
        """The model's own generation, as its user calls it, to images as ``decode`` gives them."""

    def draw(self, seed: int) -> dict[str, Tensor]:
        """All noise of a run, by name, on the CPU."""
        generators = [torch.Generator().manual_seed(seed + image) for image in range(self.images)]
        return {noise.name: noise.draw(generators) for noise in self.noise}

    def noise_of(self, scale: int) -> tuple[Noise, ...]:
        """The noise that a scale takes, in the order in which it is drawn."""
        return tuple(noise for noise in self.noise if noise.scale == scale)


def _has(model: object, path: str) -> bool:
    try:
        reduce(getattr, path.split("."), model)
    except AttributeError:
        return False
    return True
