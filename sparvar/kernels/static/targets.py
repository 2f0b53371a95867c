"""Architectures the kernels are compiled for, and published figures of GPUs that have them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """An architecture. `shared` is what one program may have of shared memory, in bytes."""

    name: str
    backend: str
    arch: int | str
    warp: int
    shared: int


@dataclass(frozen=True)
class Gpu:
    """Published peaks without sparsity: matrix products of 16-bit operands and fp32, in TFLOP/s; memory in GB/s."""

    name: str
    target: str
    tflops_16: float
    tflops_32: float
    gigabytes: float
    source: str

    @property
    def hip(self) -> bool:
        """Whether kernels take the blocks pinned for AMD."""
        return TARGETS[self.target].backend == "hip"


# Shared memory: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability", and CDNA 2 and 3 ISA
# guides (local data share).
TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("sm_80", "cuda", 80, 32, 163 * 1024),
        Target("sm_89", "cuda", 89, 32, 99 * 1024),
        Target("sm_90", "cuda", 90, 32, 227 * 1024),
        Target("sm_100", "cuda", 100, 32, 227 * 1024),
        Target("gfx90a", "hip", "gfx90a", 64, 64 * 1024),
        Target("gfx942", "hip", "gfx942", 64, 64 * 1024),
    )
}

GPUS: tuple[Gpu, ...] = (
    Gpu("A100 SXM 80 GB", "sm_80", 312.0, 19.5, 2039.0, "NVIDIA A100 datasheet"),
    Gpu("L40", "sm_89", 181.05, 90.5, 864.0, "NVIDIA L40 datasheet"),
    Gpu("H100 SXM", "sm_90", 989.5, 67.0, 3350.0, "NVIDIA H100 datasheet; half of the figure with sparsity"),
    Gpu("H200 SXM", "sm_90", 989.5, 67.0, 4800.0, "NVIDIA H200 datasheet; half of the figure with sparsity"),
    Gpu("B200", "sm_100", 2250.0, 75.0, 8000.0, "NVIDIA HGX B200 datasheet; an eighth, half of that with sparsity"),
)
