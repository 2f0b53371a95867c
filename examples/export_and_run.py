"""Turn a model and a plan into an artefact, load it without the model's source, and draw with it.

    python examples/export_and_run.py --out landscape.artefact

Shows `sparvar.export_artefact`, `sparvar.load` and `sparvar.verify`. Every scale is compiled ahead of time, which takes
some six minutes for the shipped model on two cores; drawing from the artefact afterwards compiles nothing. Any other
model of a known family: ``--model package.module:factory --plan plan.json``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import sparvar
from sparvar.export import load_exportable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("landscape.artefact"), help="folder of the artefact")
    parser.add_argument("--model", default="zoo:landscape", help="zoo:landscape or package.module:factory")
    parser.add_argument("--plan", default="auto", help="a plan's file or name; auto finds the one made for the model")
    parser.add_argument("--format", choices=("aoti", "onnx"), default="aoti", help="AOTInductor or ONNX")
    parser.add_argument("--label", default="mountain")
    asked = parser.parse_args()

    sparvar.export_artefact(load_exportable(asked.model), asked.plan, asked.out, formats=[asked.format])

    artefact = sparvar.load(asked.out)  # no model, no compiler: any process with torch can do this
    artefact.warm_up()
    started = time.perf_counter()
    images = artefact.generate([asked.label], seed=7)  # [1, 3, H, W] in [0, 1]
    print(f"an image of {images.shape[-2]}x{images.shape[-1]} pixels in {time.perf_counter() - started:.2f} s")
    report = sparvar.verify(asked.out)  # checksums, the recorded image, memory
    print(f"verified {report.files} files and the recorded image: {'; '.join(report.problems) or 'as it was made'}")


if __name__ == "__main__":
    main()
