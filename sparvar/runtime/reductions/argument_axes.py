"""Which axes of a block's arguments count batch rows and tokens, learnt from the calls of one generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparvar.errors import SessionError, message

Path = int | str
"""Position, or name, of an argument."""


def tensors_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor argument."""
    places: list[tuple[Path, Any]] = [*enumerate(args), *kwargs.items()]
    for path, value in places:
        if isinstance(value, Tensor):
            yield path, value


class Roles:
    """Axes of the tensor arguments of a model's blocks.

    An axis counts tokens where it has had the scale's number of them at every scale so far, of at least two sizes. The
    first axis counts batch rows where it has always been as long as that of the tokens [B, N, C]; a table whose second
    axis counts tokens and whose last is not C (rotations [2, N, D/2], say) has none.
    """

    def __init__(self) -> None:
        self._seen: dict[Path, list[tuple[int, tuple[int, ...]]]] = {}
        self._rows = 0
        self._width = 0

    def learn(self, x: Tensor, tokens: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Note the shapes of a call with ``tokens`` tokens."""
        self._rows, self._width = x.shape[0], x.shape[2]
        for path, tensor in tensors_of(args, kwargs):
            self._seen.setdefault(path, []).append((tokens, tuple(tensor.shape)))

    def tokens(self, path: Path) -> list[int]:
        """Axes that count tokens."""
        seen = self._seen.get(path, [])
        if len({tokens for tokens, _ in seen}) < 2 or len({len(shape) for _, shape in seen}) != 1:
            return []
        return [axis for axis in range(len(seen[0][1])) if all(shape[axis] == count for count, shape in seen)]

    def rows(self, path: Path) -> bool:
        """Whether the first axis counts batch rows."""
        seen = self._seen.get(path, [])
        if not seen or not all(shape and shape[0] == self._rows for _, shape in seen):
            return False
        table = 1 in self.tokens(path) and seen[-1][1][-1] != self._width
        return not table


def map_tensors(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], change: Callable[[Path, Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with every tensor replaced."""
    new = tuple(change(number, each) if isinstance(each, Tensor) else each for number, each in enumerate(args))
    return new, {name: change(name, each) if isinstance(each, Tensor) else each for name, each in kwargs.items()}


def cache_places(module: nn.Module, rows: int, keys: int) -> Iterator[tuple[dict[Any, Any], Any, Tensor]]:
    """Holder, key and value of every KV cache below a module: attributes, and entries of dicts, [rows, ., .] of T keys.

    Parameters and buffers are none.
    """
    for part in module.modules():
        for name, value in list(vars(part).items()):
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            if isinstance(value, Tensor) and _is_cache(value, rows, keys):
                yield part.__dict__, name, value
            elif isinstance(value, dict):
                for key, each in list(value.items()):
                    if isinstance(each, Tensor) and _is_cache(each, rows, keys):
                        yield value, key, each


def _is_cache(tensor: Tensor, rows: int, keys: int) -> bool:
    return tensor.ndim == 4 and tensor.shape[0] == rows and keys in tensor.shape[1:3]


def check_guided(x: Tensor) -> None:
    """Both halves of the rows must be the same tokens, apart from what their condition adds to all of them alike.

    Raises:
        SessionError: they are not: rows of images without guidance must not be dropped.
    """
    rows = x.shape[0]
    must = "be a conditional and an unconditional half of the same tokens, as classifier-free guidance makes them"
    remedy = "take guidance out of the plan, or generate with guidance"
    if rows % 2:
        raise SessionError(message("batch rows", must, f"{rows} rows", remedy))
    step = max(1, x.shape[1] // 64)
    some = x[:, ::step].float()
    apart = some[: rows // 2] - some[rows // 2 :]
    spread = (apart - apart[:, :1]).abs().amax()
    if bool(spread > 1e-2 * (some.abs().amax() + 1e-12)):
        raise SessionError(message("batch rows", must, "halves that differ from token to token", remedy))


def version_of(tensor: Tensor) -> int | None:
    """How often a tensor has been written in place; None for inference tensors, which do not count it."""
    return None if tensor.is_inference() else tensor._version


def half(tensor: Tensor) -> Tensor:
    """The first half of the rows: the conditional ones."""
    return tensor[: tensor.shape[0] // 2]


def enlarge(tokens: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Tokens [B, N_S, C] of grid ``source`` on grid ``target``, bilinearly: [B, N, C]."""
    b, _, width = tokens.shape
    picture = tokens.reshape(b, *source, width).permute(0, 3, 1, 2)  # channels last in memory
    grown = torch.nn.functional.interpolate(picture.float(), size=target, mode="bilinear", align_corners=False)
    return grown.permute(0, 2, 3, 1).reshape(b, -1, width).to(tokens.dtype)
