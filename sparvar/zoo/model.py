"""The landscape model: a class-conditional VAR that predicts bits of the next scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparvar.zoo.tokenizer import BitTokenizer
from sparvar.zoo.transformer import Block, rope_table

Schedule = tuple[tuple[int, int], ...]
"""(h, w) of every scale."""

CLASSES = (
    "canyon",
    "city",
    "desert",
    "fields",
    "industrial_space",
    "mountain",
    "sea",
    "sky_fog",
    "snow",
    "valley",
)


class LandscapeVAR(nn.Module):
    """Next-scale prediction over the bits of :class:`BitTokenizer`.

    Args:
        tokenizer: images to bits and back; its sides are the schedule.
        width: channels C.
        depth: blocks.
        heads: attention heads.
        classes: class names; one more embedding stands for "no class" (CFG).
    """

    def __init__(
        self,
        tokenizer: BitTokenizer,
        width: int = 256,
        depth: int = 6,
        heads: int = 4,
        classes: Sequence[str] = CLASSES,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.classes = tuple(classes)
        self.sides = tokenizer.sides
        self.heads = heads
        self.class_embed = nn.Embedding(len(self.classes) + 1, width)
        self.level_embed = nn.Embedding(len(self.sides), width)
        self.start = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.word_embed = nn.Linear(tokenizer.dim, width)
        self.ada = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.head_ada = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, tokenizer.dim)
        self.schedule: Schedule = tuple((side, side) for side in self.sides)
        self._ropes = self._rope_tables(self.schedule)
        self._other: tuple[Schedule, list[Tensor]] | None = None
        self._init_weights(depth)

    def _init_weights(self, depth: int) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
        for block in self.blocks:
            assert isinstance(block, Block)
            for layer in (block.attn.proj, block.fc2):
                nn.init.trunc_normal_(layer.weight, std=0.02 / (2 * depth) ** 0.5)
            nn.init.ones_(block.ada_bias[:2])

    @property
    def patch(self) -> int:
        """Pixels along a side of a cell of the last scale's grid."""
        return self.tokenizer.patch

    def _rope_tables(self, schedule: Schedule) -> list[Tensor]:
        # The canvas is the last grid: its cells lie as far apart at every size as in training.
        height, width = schedule[-1]
        return [rope_table(grid, self.start.shape[-1] // self.heads, (height, width)) for grid in schedule]

    def rope(self, scale: int, schedule: Schedule | None = None) -> Tensor:
        """Rotations of 0-based ``scale``, on the model's device; those of the latest other schedule are kept."""
        tables = self._ropes
        if schedule is not None and schedule != self.schedule:
            if self._other is None or self._other[0] != schedule:
                with torch.inference_mode(False):
                    self._other = schedule, self._rope_tables(schedule)
            tables = self._other[1]
        table = tables[scale]
        if table.device != self.start.device:
            table = tables[scale] = table.to(self.start.device)
        return table

    def check_schedule(self, given: Sequence[Sequence[int]]) -> Schedule:
        """A schedule that the model can draw, as grids (h, w).

        Raises:
            ValueError: it has another number of scales than the model, an entry is no grid, or a side shrinks.
        """
        if len(given) != len(self.sides):
            wanted = f"{len(self.sides)} grids (h, w), one per scale of the model"
            raise ValueError(f"scale_schedule: must have {wanted}, got {len(given)}")
        schedule: list[tuple[int, int]] = []
        for number, grid in enumerate(given, start=1):
            if len(grid) != 2 or not all(isinstance(side, int) and side >= 1 for side in grid):
                raise ValueError(
                    f"scale_schedule, scale {number}: must be two whole numbers above 0 (h, w), got {grid!r}"
                )
            height, width = grid
            if schedule and (height < schedule[-1][0] or width < schedule[-1][1]):
                h, w = schedule[-1]
                raise ValueError(
                    f"scale_schedule, scale {number}: must be at least {h}x{w} in both axes, as the scale before it,"
                    f" got {height}x{width}"
                )
            schedule.append((height, width))
        return tuple(schedule)

    def condition(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class indices [B] to start tokens [B, 1, C], block [B, 6, C] and head [B, 2, C] modulation."""
        embedded = self.class_embed(labels)
        active = F.silu(embedded)
        b, width = embedded.shape
        return (
            embedded.unsqueeze(1) + self.start,
            self.ada(active).view(b, 6, width),
            self.head_ada(active).view(b, 2, width),
        )

    def tokens(self, level: Tensor, start: Tensor, scale: int) -> Tensor:
        """Accumulated map at the scale's grid [B, dim, h, w] to input tokens [B, h*w, C]."""
        x = self.word_embed(level.flatten(2).transpose(1, 2))
        return x + start + self.level_embed.weight[scale]

    def logits(self, x: Tensor, head: Tensor) -> Tensor:
        """Block outputs [B, L, C] to bit logits [B, L, dim]."""
        gain, bias = head.unsqueeze(2).unbind(1)
        return self.head(F.layer_norm(x, x.shape[-1:]) * (1 + gain) + bias)

    def forward(self, labels: Tensor, inputs: list[Tensor]) -> list[Tensor]:
        """Teacher forcing: labels [B] and per scale accumulated maps [B, dim, h, w].

        Returns:
            Per scale, logits [B, dim, h, w] of the bits being 1.
        """
        start, cond, head = self.condition(labels)
        x = torch.cat([self.tokens(level, start, scale) for scale, level in enumerate(inputs)], dim=1)
        rope = torch.cat([self.rope(scale) for scale in range(len(inputs))], dim=1)
        sizes = [level.shape[-2] * level.shape[-1] for level in inputs]
        ends = tuple(torch.tensor(sizes).cumsum(0).tolist())
        for block in self.blocks:
            x = block(x, cond, rope, ends)
        parts = self.logits(x, head).split(sizes, dim=1)
        return [part.transpose(1, 2).unflatten(2, level.shape[-2:]) for part, level in zip(parts, inputs, strict=True)]

    def class_index(self, label: str | int) -> int:
        """Index of a class given by name or number."""
        if isinstance(label, str) and label in self.classes:
            return self.classes.index(label)
        if isinstance(label, int) and 0 <= label < len(self.classes):
            return label
        names = ", ".join(f"{i} {name}" for i, name in enumerate(self.classes))
        raise ValueError(f"labels: each must be a class name or its number ({names}), got {label!r}")

    @torch.inference_mode()
    def generate(
        self,
        labels: Sequence[str | int],
        seed: int = 0,
        cfg: float = 2.0,
        temperature: float = 1.0,
        on_scale: Callable[[int], None] | None = None,
        scale_schedule: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """Draw one image per label.

        Args:
            labels: class names or numbers, B of them.
            seed: of the noise; image i of a batch uses ``seed + i``, so it does not depend on the batch.
            cfg: guidance at the last scale, stronger before (see ``scale_guidance``); 1 turns it off.
            temperature: of the coarse scales; fine scales are drawn colder (see ``scale_temperature``).
            on_scale: called with the 0-based scale after each.
            scale_schedule: (h, w) of every scale, as many as the model has, no side ever shrinking; the model's own
                square grids if None. The last grid times the tokenizer's patch is the image's size.

        Returns:
            Images [B, 3, H, W] in [0, 1], float32.

        Raises:
            ValueError: no label or an unknown one, or a schedule that the model cannot draw.
        """
        if not labels:
            raise ValueError("labels: must name at least one class, got none")
        schedule = self.schedule if scale_schedule is None else self.check_schedule(scale_schedule)
        device = self.start.device
        index = torch.tensor([self.class_index(label) for label in labels], device=device)
        rows = len(index)
        guided = cfg != 1.0
        both = torch.cat((index, torch.full_like(index, len(self.classes)))) if guided else index
        start, cond, head = self.condition(both)
        generators = [torch.Generator().manual_seed(seed + i) for i in range(rows)]
        total = torch.zeros(rows, self.tokenizer.dim, *schedule[-1], device=device, dtype=self.start.dtype)
        for block in self.blocks:
            block.attn.kv_caching(True)  # type: ignore[operator,union-attr]
        for scale, (h, w) in enumerate(schedule):
            level = self.tokenizer.grow(total, (h, w))
            x = self.tokens(torch.cat((level, level)) if guided else level, start, scale)
            for block in self.blocks:
                x = block(x, cond, self.rope(scale, schedule))
            logits = self.logits(x, head).float()
            if guided:
                strength = self.scale_guidance(scale, cfg)
                given, free = logits.chunk(2)
                logits = free + strength * (given - free)
            noise = torch.stack([torch.rand(h * w, self.tokenizer.dim, generator=g) for g in generators])
            chance = torch.sigmoid(logits / self.scale_temperature(scale, temperature))
            bits = (noise.to(device) < chance).to(total.dtype)
            total = self.tokenizer.accumulate(total, bits.transpose(1, 2).unflatten(2, (h, w)), scale)
            if on_scale is not None:
                on_scale(scale)
        for block in self.blocks:
            block.attn.kv_caching(False)  # type: ignore[operator,union-attr]
        return self.tokenizer.decode(total).float()

    def scale_guidance(self, scale: int, cfg: float) -> float:
        """Guidance of 0-based ``scale``: its excess over 1 falls from three times that of the last scale.

        What a picture is of is settled at the coarse scales; at the fine ones strong guidance hardens texture.
        """
        return 1 + (cfg - 1) * (3 - 2 * scale / (len(self.sides) - 1))

    def scale_temperature(self, scale: int, temperature: float) -> float:
        """Temperature of 0-based ``scale``: ``temperature`` at first, falling to 40 % of it at the last."""
        return temperature * (1 - 0.6 * scale / (len(self.sides) - 1))
