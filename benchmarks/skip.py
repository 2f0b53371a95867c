"""What skipping scales costs in quality on the shipped model, and what a fitted choice per image makes of it.

    python benchmarks/skip.py measure --json benchmarks/results/skip-cpu.json
    python benchmarks/skip.py judge benchmarks/results/skip-cpu.json

``measure`` draws ten images (two seeds of five classes) densely, which also gives what skipping makes of them, and the
first two again without the unconditional rows of the last one and two scales; images that the file has are not drawn
again. ``judge`` fits the choice on six of them and says what it makes of the other four.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from sparvar.calibrate import load_subject
from sparvar.calibrate.fit.skip import Option, Sample, SkipOptions, fit_samples, skip_samples
from sparvar.evaluate.machine import machine
from sparvar.models.fingerprint import fingerprint
from sparvar.scale_plans import decide

PROMPTS = ("mountain", "sea", "city", "fields", "desert")
SEEDS = (70, 71)
SKIP = 3
CONDITIONAL = 2
"""Last scales without unconditional rows, at most, of the first images."""
CONDITIONAL_IMAGES = 2
FITTED = 6
"""Images the choice is fitted on; the others judge it."""
TARGETS = (0.80, 0.84, 0.88, 0.92)


class Lines:
    """Progress, a line on stderr for every step."""

    def step(self, text: str) -> None:
        """A step begins."""
        print(text, file=sys.stderr, flush=True)


def measure(path: Path) -> None:
    """Draw, and write what was found."""
    subject = load_subject("zoo:landscape")
    found = [_from_json(raw) for raw in json.loads(path.read_text())["samples"]] if path.exists() else []
    drawn = {(sample.prompt, sample.seed) for sample in found}

    for seed in SEEDS:
        for prompt in PROMPTS:
            if (prompt, seed) in drawn:
                continue
            rows = CONDITIONAL if len(found) < CONDITIONAL_IMAGES else 0
            options = SkipOptions(seeds=(seed,), skip=SKIP, conditional=rows, fill="delta")
            scale, samples = skip_samples(subject, [prompt], options, Lines())
            found += samples
            record = {
                "machine": machine(),
                "model": fingerprint(subject.model),
                "scale": scale,
                "samples": [_as_json(sample) for sample in found],
            }
            path.write_text(json.dumps(record, indent=1) + "\n")


def _as_json(sample: Sample) -> dict[str, Any]:
    def by_option(values: Any) -> dict[str, float]:
        return {f"{what} {count}": value for (what, count), value in values.items()}

    return {
        "prompt": sample.prompt,
        "seed": sample.seed,
        "features": list(sample.features),
        "psnr": by_option(sample.psnr),
        "ssim": by_option(sample.ssim),
        "seconds": dict(sample.seconds),
    }


def _from_json(raw: dict[str, Any]) -> Sample:
    def by_option(values: dict[str, float]) -> dict[Option, float]:
        pairs = ((name.split(), value) for name, value in values.items())
        return {("skip" if what == "skip" else "conditional", int(count)): value for (what, count), value in pairs}

    seconds = {int(scale): value for scale, value in raw["seconds"].items()}
    return Sample(
        raw["prompt"], raw["seed"], tuple(raw["features"]), by_option(raw["psnr"]), by_option(raw["ssim"]), seconds
    )


def judge(path: Path) -> None:
    """Fit on some of the images, and print what the choice makes of the others, against always and never."""
    record = json.loads(path.read_text())
    samples = [_from_json(raw) for raw in record["samples"]]
    for option in samples[0].psnr:
        have: list[tuple[Sample, Option | None]] = [(sample, option) for sample in samples if option in sample.psnr]
        print(f"{option[0]:>11} {option[1]}, {len(have)} images: {_line(have)}")
    samples = [_skipping(sample) for sample in samples]
    for sample in samples:
        edges, fine = sample.features
        print(f"{sample.prompt:>9} {sample.seed}: edges {edges:.4f}, fine {fine:.4f}, SSIM "
              + ", ".join(f"{sample.ssim['skip', count]:.3f}" for count in (1, 2, 3)))  # fmt: skip
    for target in TARGETS:
        fit = fit_samples(
            record["model"], record["scale"], samples[:FITTED], SkipOptions(min_ssim=target, fill="delta")
        )
        held = samples[FITTED:]
        chosen: list[tuple[Sample, Option | None]] = []
        for sample in held:
            skip, rows = decide(fit.adapt, [sample.features])
            chosen.append((sample, ("skip", skip) if skip else ("conditional", rows) if rows else None))
        what = ", ".join(f"{option[0]} {option[1]}" if option else "all" for _, option in chosen)
        print(f"target SSIM {target}: {what}: {_line(chosen)}")


def _skipping(sample: Sample) -> Sample:
    """The sample with the options that all images have."""
    return dataclasses.replace(
        sample,
        psnr={option: value for option, value in sample.psnr.items() if option[0] == "skip"},
        ssim={option: value for option, value in sample.ssim.items() if option[0] == "skip"},
    )


def _line(chosen: list[tuple[Sample, Option | None]]) -> str:
    psnr = [sample.psnr[option] for sample, option in chosen if option]
    ssim = [sample.ssim[option] if option else 1.0 for sample, option in chosen]
    time = [_share(sample, option) for sample, option in chosen]
    quality = f"{statistics.mean(psnr):.2f} dB (least {min(psnr):.2f}) where changed, " if psnr else ""
    return f"{quality}SSIM {statistics.mean(ssim):.3f} (least {min(ssim):.3f}), time {statistics.mean(time):.2f}"


def _share(sample: Sample, option: Option | None) -> float:
    """Share of the dense generation's seconds; scales without unconditional rows count as half."""
    ends = sample.seconds
    last = max(ends)
    if option is None:
        return 1.0
    tail = ends[last] - ends[last - option[1]]
    return 1 - (tail if option[0] == "skip" else tail / 2) / ends[last]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("measure", "judge"))
    parser.add_argument("path", nargs="?", type=Path, default=Path("benchmarks/results/skip-cpu.json"))
    parser.add_argument("--json", dest="path", type=Path)
    arguments = parser.parse_args()
    measure(arguments.path) if arguments.what == "measure" else judge(arguments.path)
