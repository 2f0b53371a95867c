"""Compare published methods on the same image: each is a plan, and all run through the same compiler.

    python examples/compare_methods.py --size 256

Shows how plans are made by rule (`sparvar.scale_plans`), attached, timed and taken off again. Each method draws one
image in one timed run, so read the table for orientation: `sparvar bench methods` has more methods, and draws more
images, in turns.
"""

from __future__ import annotations

import argparse
import time

from torch import Tensor

import sparvar
from sparvar.calibrate import Subject, load_subject
from sparvar.scale_plans import (
    Plan,
    conditional,
    default_for,
    dense_plan,
    fastvar,
    kept_tokens,
    load_plan,
    sparsevar,
    transfer,
)


def plans(subject: Subject) -> dict[str, Plan]:
    """Plans by method for the subject's schedule; all but the last by the rules of their papers."""
    calibrated = load_plan("landscape")
    dense = dense_plan(subject.schedule, calibrated.model, tile=subject.tile)
    last = dense.scales
    return {
        "SparVAR": default_for(dense),
        "FastVAR, no scale skipped": fastvar(dense),
        "SparseVAR": sparsevar(dense),
        "ToMe": kept_tokens(dense, "tome", "merge", last - 2, (0.5, 0.26)),
        "SkipVAR, last scale without guidance": conditional(dense, 1),
        "sparvar's plan for 512x512, carried here": transfer(calibrated, subject.schedule),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--label", default="mountain")
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=7)
    asked = parser.parse_args()

    subject = load_subject("zoo:landscape")
    assert subject.resize is not None
    subject = subject.resize(asked.size, asked.size)

    def timed() -> tuple[Tensor, float]:
        started = time.perf_counter()
        return subject.draw(subject.model, asked.label, asked.seed), time.perf_counter() - started

    timed()
    reference, dense_seconds = timed()
    print(f"{'dense':42} {dense_seconds:6.2f} s")
    for name, plan in plans(subject).items():
        sparvar.compile(subject.model, plan=plan, inner="eager")
        timed()  # captures one graph per scale and kind
        image, seconds = timed()
        sparvar.detach(subject.model)
        psnr = -10 * (image - reference).square().mean().log10().item()
        print(f"{name:42} {seconds:6.2f} s  {dense_seconds / seconds:5.2f} times faster  {psnr:5.1f} dB")


if __name__ == "__main__":
    main()
