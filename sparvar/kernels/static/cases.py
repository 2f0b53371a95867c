"""Which compilations make the static table: kernel x target x dtype x head dimension, and some variants.

The kernels of column lists have no head dimension and no dtype but their own; they multiply nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparvar.kernels.common.checks import fail
from sparvar.kernels.static.targets import TARGETS

HEAD_DIMS = (64, 96, 104, 112, 120, 128, 256)
DTYPES = ("bf16", "fp16", "fp32")
VARIANT_DIMS = (64, 128)

# kernel -> its variants: the pinned form first, others by what they are for
KERNELS: dict[str, tuple[str, ...]] = {
    "column_sparse_attention": ("pinned", "correction", "runs", "hopper"),
    "attention_stats": ("pinned", "without entropy"),
    "column_sums": ("pinned",),
}
# those of column lists -> their dtype, and their variants: names of `aot_cases` behind that of the op
LISTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "select_columns": ("fp32", ("T=100", "T=2521", "T=4121", "T=6425", "T=40000")),
    "map_columns": ("int32", ("mark", "gather", "compact", "spread")),
}


@dataclass(frozen=True)
class StaticCase:
    """One compilation. `head_dim` is 0 where there is none."""

    kernel: str
    variant: str
    target: str
    dtype: str
    head_dim: int

    @property
    def name(self) -> str:
        """The case in one line, unique."""
        return f"{self.kernel} ({self.variant}) {self.target} {self.dtype} {self.head_dim or ''}".rstrip()


def static_cases(kernel: str = "") -> list[StaticCase]:
    """Return every case, or those of one kernel. Variants take the two common head dimensions only.

    Raises `KernelError` on a kernel without cases.
    """
    names = (*KERNELS, *LISTS)
    if kernel and kernel not in names:
        raise fail("kernel", f"be one of {', '.join(names)}", kernel)
    attention = [
        StaticCase(name, variant, target, dtype, dim)
        for name, variants in KERNELS.items()
        for variant in variants
        for target in TARGETS
        for dtype in DTYPES
        for dim in HEAD_DIMS
        if dim in VARIANT_DIMS or variant == "pinned"
        if variant != "hopper" or (target == "sm_90" and dtype != "fp32")
    ]
    lists = [
        StaticCase(name, variant, target, dtype, 0)
        for name, (dtype, variants) in LISTS.items()
        for variant in variants
        for target in TARGETS
    ]
    return [case for case in attention + lists if kernel in ("", case.kernel)]
