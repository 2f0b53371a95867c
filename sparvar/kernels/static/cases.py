"""Which compilations make the static table: kernel x target x dtype x head dimension, and some variants."""

from __future__ import annotations

from dataclasses import dataclass

from sparvar.kernels.common.checks import fail
from sparvar.kernels.static.targets import TARGETS

__all__ = ["DTYPES", "HEAD_DIMS", "KERNELS", "StaticCase", "static_cases"]

HEAD_DIMS = (64, 96, 104, 112, 120, 128, 256)
DTYPES = ("bf16", "fp16", "fp32")
VARIANT_DIMS = (64, 128)

# kernel -> its variants: the pinned form first, others by what they are for
KERNELS: dict[str, tuple[str, ...]] = {
    "column_sparse_attention": ("pinned", "correction", "runs"),
    "attention_stats": ("pinned", "without entropy"),
    "column_sums": ("pinned",),
}


@dataclass(frozen=True)
class StaticCase:
    """One compilation."""

    kernel: str
    variant: str
    target: str
    dtype: str
    head_dim: int

    @property
    def name(self) -> str:
        """The case in one line, unique."""
        return f"{self.kernel} ({self.variant}) {self.target} {self.dtype} {self.head_dim}"


def static_cases(kernel: str = "") -> list[StaticCase]:
    """Return every case, or those of one kernel. Variants take the two common head dimensions only.

    Raises `KernelError` on a kernel without cases.
    """
    if kernel and kernel not in KERNELS:
        raise fail("kernel", f"be one of {', '.join(KERNELS)}", kernel)
    return [
        StaticCase(name, variant, target, dtype, dim)
        for name, variants in KERNELS.items()
        if kernel in ("", name)
        for variant in variants
        for target in TARGETS
        for dtype in DTYPES
        for dim in HEAD_DIMS
        if dim in VARIANT_DIMS or variant == "pinned"
    ]
