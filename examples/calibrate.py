"""Find the cheapest plan that keeps a PSNR, on this machine.

    python examples/calibrate.py --min-psnr 30 --out plan.json

Shows `sparvar.calibrate` on small images, so that it takes a minute and not ten: the shipped model draws 128x128 pixels
here. ``--size 512`` is its own size. What was measured stays in the folder ``plan.json.work``; run again with another
budget and ``--resume``, and only what is new is measured. `sparvar calibrate` does the same from the command line and
writes a report with figures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import sparvar
from sparvar.calibrate import Budget, CalibrationOptions, Effort, load_subject

LABELS = ["mountain", "sea", "canyon", "city", "snow", "valley"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--min-psnr", type=float, default=30.0, help="least mean PSNR against dense images, dB")
    parser.add_argument("--out", type=Path, default=Path("plan.json"))
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--resume", action="store_true", help="go on with what was measured before")
    parser.add_argument("--model", default="zoo:landscape", help="zoo:landscape or package.module:factory")
    asked = parser.parse_args()

    subject = load_subject(asked.model)  # the model, how to draw one image with it, and its schedule
    if subject.resize is not None:
        subject = subject.resize(asked.size, asked.size)
    found = sparvar.calibrate(
        subject,
        LABELS,
        Budget(min_psnr=asked.min_psnr),
        asked.out.parent / f"{asked.out.name}.work",
        CalibrationOptions(effort=Effort.quick(images=2), resume=asked.resume),
    )
    print(found.plan)
    found.plan.save(asked.out)
    print(f"written to {asked.out}")


if __name__ == "__main__":
    main()
