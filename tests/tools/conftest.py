"""A small random landscape model with a plan of its own, so that whole commands run in seconds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from sparvar.models.fingerprint import fingerprint
from sparvar.scale_plans import ModelInfo, Plan, default_plan
from sparvar.tools.cli import app
from sparvar.zoo import LandscapeVAR, landscape
from sparvar.zoo.tokenizer import BitTokenizer
from sparvar.zoo.weights import save_landscape


@dataclass(frozen=True)
class Tiny:
    """Folder with weights, path of a plan for them, and the plan."""

    weights: Path
    path: Path
    plan: Plan

    @property
    def options(self) -> list[str]:
        return ["--weights", str(self.weights), "--plan", str(self.path), "--inner", "eager"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    tokenizer = BitTokenizer()
    # Gains of 1 at every scale would leave no picture: make the fine scales fainter.
    tokenizer.gains.mul_(torch.linspace(1, 0.1, len(tokenizer.sides))[:, None])
    tokenizer.basis.copy_(torch.linalg.qr(torch.randn(tokenizer.basis.shape[1], tokenizer.dim)).Q.T)
    save_landscape(LandscapeVAR(tokenizer, width=64, depth=2, heads=1), folder)
    model = landscape(folder)
    plan = default_plan(
        [(side, side) for side in model.sides],
        ModelInfo(sites=["blocks.0.attn", "blocks.1.attn"], heads=1, head_dim=64, fingerprint=fingerprint(model)),
        name="tiny",
        cs4a_share=1.0,
    )
    plan = plan.replace(layers=["cs4a", "csla"], csla={13: {"windows": {12: 5, 13: 7}}})
    path = folder / "tiny.json"
    plan.save(path)
    return Tiny(folder, path, plan)


@pytest.fixture
def invoke() -> Callable[..., Result]:
    """Run the command in this process."""

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})

    return run


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "sparvar.tools", *map(str, arguments)]


def run_command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
