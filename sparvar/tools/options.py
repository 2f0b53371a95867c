"""Options and arguments that several commands have."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from sparvar.evaluate.machine import compiler
from sparvar.tools.bench.demo import Baseline
from sparvar.tools.console import notes

MODEL_HELP = "zoo:landscape, or package.module:factory."


class Inner(str, Enum):
    """Choices of ``--inner``."""

    auto = "auto"
    inductor = "inductor"
    eager = "eager"


class BaselineChoice(str, Enum):
    """Choices of ``--baseline``."""

    eager = "eager"
    inductor = "inductor"
    both = "both"

    @property
    def baselines(self) -> tuple[Baseline, ...]:
        """The dense variants that it stands for."""
        return {"eager": ("eager",), "inductor": ("inductor",), "both": ("eager", "inductor")}[self.value]  # type: ignore[return-value]


def choose_inner(inner: Inner) -> str:
    """What ``auto`` stands for here, said aloud."""
    if inner is not Inner.auto:
        return inner.value
    if compiler() is not None:
        return "inductor"
    notes().print("No C++ compiler was found, so the graphs run without Inductor (--inner eager).")
    return "eager"


ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the results as JSON.")]
PlanName = Annotated[
    str, typer.Option(metavar="PLAN", help="auto (the shipped plan of the model), a plan file, or a shipped name.")
]
InnerOption = Annotated[
    Inner, typer.Option(help="What compiles the rewritten graphs; auto is inductor where a C++ compiler is.")
]
Cfg = Annotated[float, typer.Option(min=0.0, help="Guidance strength; 1 turns guidance off.")]
Weights = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder with other weights of the landscape model.")]
Prompts = Annotated[Path, typer.Option(metavar="FILE", help="One label, or JSON value, per line.")]
Checkpoint = Annotated[Path | None, typer.Option(metavar="FILE", help="Weights for MODEL: .safetensors, .pt or .pth.")]
ArtefactPath = Annotated[Path, typer.Argument(metavar="ARTEFACT", help="A folder, or a .sparvar file.")]
FormatName = Annotated[
    str | None, typer.Option("--format", "-f", help="aoti, onnx or tensorrt; the first that can run.")
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; the one the artefact was made for.")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Run the native code of an artefact that was not made on this machine.")
]
