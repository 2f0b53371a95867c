"""What the shipped plan loses where it is carried by rule to other sizes and ratios of the shipped model.

``python benchmarks/transfer.py --out benchmarks/results/transfer-cpu.json``

At each size the model's own code and the plan draw the same images in turns, after one of each that compiles and warms
up. The size the plan was made for comes first, to compare with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from sparvar.calibrate import compare_plans, load_subject
from sparvar.evaluate.machine import machine
from sparvar.scale_plans import shipped_plans, transfer
from sparvar.tools.console import as_json

SIZES = ((512, 512), (384, 384), (512, 768), (640, 384))
PROMPTS = ("mountain", "sea", "valley", "city")


def measure(height: int, width: int, images: int, inner: str) -> dict[str, Any]:
    """The loss at one size in pixels, as JSON values."""
    subject = load_subject("zoo:landscape")
    assert subject.resize is not None
    sized = subject.resize(height, width)
    source = shipped_plans()["landscape"]
    plan = transfer(source, sized.schedule)
    found = compare_plans(sized, plan, PROMPTS, images, 0, inner, lambda text: print(f"{height}x{width}: {text}"))
    return {
        "size": [height, width],
        "schedule": plan.schedule,
        "own": plan.schedule == source.schedule,
        "digest": plan.digest,
        "sink_scales": plan.sink_scales,
        "decision_scale": plan.decision_scale,
        "cost": plan.cost(),
        **found,
    }


def main(
    out: Annotated[Path, typer.Option(help="JSON of every size.")],
    images: Annotated[int, typer.Option(min=1, help="Images per size.")] = 4,
    inner: Annotated[str, typer.Option(help="Inner compiler.")] = "inductor",
) -> None:
    """Measure every size and print one line for each."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for height, width in SIZES:
        rows.append(measure(height, width, images, inner))
        content = {"benchmark": "transfer", "format": 1, "device": device, "machine": machine(), "inner": inner}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(as_json({**content, "prompts": PROMPTS, "sizes": rows}))
    for row in rows:
        seconds, dense = row["seconds_median"], row["dense_seconds_median"]
        print(
            f"{row['size'][0]}x{row['size'][1]}: {row['psnr_db_mean']:.1f} dB (least {row['psnr_db_least']:.1f}),"
            f" {seconds:.2f} s for {dense:.2f} s ({100 * row['ratio']:.0f} %)"
        )


if __name__ == "__main__":
    typer.run(main)
