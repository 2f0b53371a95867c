"""Programs that AOTInductor compiled: what the model rounds to 16 bits they round, too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparvar.export.formats.aoti_worker import SETTINGS, compile_program, settings_of
from sparvar.export.trace import export_graph


class Chain(nn.Module):
    """Elementwise ops that a compiler fuses; in 16 bits each of them rounds."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        low = x.to(self.dtype)
        for number in range(1, 6):
            low = low * (1 + 0.01 * number) + low.square() * 0.3
        return low.float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_rounded_where_the_model_rounds_them(dtype: torch.dtype, tmp_path: Path) -> None:
    x = torch.linspace(-1, 1, 4096)
    module = Chain(dtype)
    exported = export_graph(module, [x])
    torch.export.save(exported, tmp_path / "source.pt2")
    compile_program(tmp_path / "source.pt2", tmp_path / "program.pt2")
    found = torch._inductor.aoti_load_package(str(tmp_path / "program.pt2"))(x)
    found = found[0] if isinstance(found, list | tuple) else found
    torch.testing.assert_close(found, module(x), rtol=0, atol=0)
    # The check can fail: computed in fp32 and rounded at the end, most of the values are others.
    fused = Chain(torch.float32)(x.to(dtype).float()).to(dtype).float()
    assert (fused != module(x)).float().mean() > 0.2


def test_fp32_programs_are_compiled_as_before() -> None:
    assert settings_of(export_graph(Chain(torch.float32), [torch.zeros(4)])) == SETTINGS
