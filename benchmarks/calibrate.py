"""What calibration gains, keeps and costs on the shipped model.

``python benchmarks/calibrate.py command --folder F`` runs the command as a user does, from empty caches: its time, its
peak memory beside that of a dense generation, what it predicted and what held-out images said, and the paper's fixed
setting and the shipped plan on the same images (``memory``: memory alone, where the machine is too busy for seconds).
``python benchmarks/calibrate.py runs --work W`` repeats the search and its confirmation on other images: every run
draws its check and held-out images, seeds and classes, from one pool without putting any back, so that they are
disjoint, and finds its own plan. ``python benchmarks/calibrate.py compare`` sets plans side by side on new images, and
``python benchmarks/calibrate.py predicted W...`` asks journals, of ``runs`` or of ``journal``, how well some images
tell of others. All write into one result file. Results committed before say ``easier_db`` for ``detail_gain_db``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from safetensors.torch import load_file

import sparvar
from sparvar.calibrate import Budget, CalibrationOptions, load_subject, start_calibration
from sparvar.calibrate.budget import MOST_IMAGES
from sparvar.calibrate.candidates.base_plan import base_plan
from sparvar.calibrate.fit.difficulty import detail_gain, log_detail
from sparvar.calibrate.journal import Journal
from sparvar.calibrate.measure.attached_model import AttachedModel
from sparvar.calibrate.measure.images import Images
from sparvar.calibrate.measure.measured import Measured, aggregate
from sparvar.calibrate.measure.runner import Runner
from sparvar.calibrate.pipeline import Pipeline
from sparvar.calibrate.search.loop import Loop
from sparvar.evaluate.machine import machine
from sparvar.evaluate.metrics import psnr, psnr_of_mse, ssim
from sparvar.files import write_whole
from sparvar.scale_plans import Plan, load_plan
from sparvar.tools.commands.calibrate import EFFORTS, Search
from sparvar.zoo import CLASSES

OUT = Path(__file__).parent / "results" / "calibrate-cpu.json"
DENSE = """
from sparvar.calibrate import load_subject
subject = load_subject("zoo:landscape")
subject.draw(subject.model, 0, 0)
subject.draw(subject.model, 0, 0)
"""
app = typer.Typer(add_completion=False)


def peak_of(command: Sequence[str], environment: dict[str, str]) -> tuple[float, int]:
    """(seconds, peak resident bytes) of a command and the processes it waits for, of which the largest counts."""
    before = time.monotonic()
    process = subprocess.Popen(command, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return time.monotonic() - before, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def add(out: Path, part: str, found: dict[str, Any]) -> None:
    """Put one part into the result file."""
    stored = json.loads(out.read_text()) if out.is_file() else {"benchmark": "calibrate", "format": 1, "device": "cpu"}
    stored[part] = {"machine": machine(), **found}
    write_whole(out, (json.dumps(stored, indent=1) + "\n").encode())


def calibrate_anew(folder: Path, min_psnr: float, out: Path, effort: Search = Search.auto) -> float:
    """Run the command as a user does, from empty caches; seconds.

    Part ``memory_auto``, or of another effort, of the result: its peak beside that of a process that generates densely.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prompts = folder / "labels.txt"
    prompts.write_text("\n".join(CLASSES) + "\n")
    with tempfile.TemporaryDirectory() as caches:
        environment = {
            **os.environ,
            "SPARVAR_CACHE_DIR": f"{caches}/sparvar",
            "TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor",
        }
        _, dense = peak_of([sys.executable, "-c", DENSE], environment)
        arguments = ["calibrate", "zoo:landscape", "--prompts", str(prompts), "--min-psnr", str(min_psnr)]
        arguments += ["--effort", effort.value]
        plan = folder / "plan.json"
        seconds, peak = peak_of([sys.executable, "-m", "sparvar.tools", *arguments, "--out", str(plan)], environment)
    digest = json.loads((folder / "calibration.json").read_text())["digest"]
    found = {"min_psnr": min_psnr, "peak_bytes": peak, "dense_peak_bytes": dense, "memory_ratio": peak / dense}
    add(out, f"memory_{effort.value}", {**found, "digest": digest})
    return seconds


@app.command()
def memory(
    folder: Annotated[Path, typer.Option(help="Where the plan and its reports are left.")],
    min_psnr: float = 32.0,
    effort: Search = Search.auto,
    out: Path = OUT,
) -> None:
    """Only the memory that the command takes, which other work on the machine does not change as it does seconds."""
    calibrate_anew(folder, min_psnr, out, effort)


@app.command()
def command(
    folder: Annotated[Path, typer.Option(help="Where the plan and its reports are left.")],
    min_psnr: float = 32.0,
    effort: Search = Search.auto,
    out: Path = OUT,
) -> None:
    """The command from empty caches."""
    seconds = calibrate_anew(folder, min_psnr, out, effort)
    report = json.loads((folder / "calibration.json").read_text())
    held, predicted = report["held_out"], report["predicted"]
    rows = {
        name: {
            "psnr_db": row["psnr_db_mean"],
            "psnr_db_least": row["psnr_db_least"],
            "ssim": row.get("ssim_mean"),
            "seconds": row["seconds_median"],
        }
        for name, row in {"calibrated": held, **report["others"]}.items()
    }
    add(
        out,
        f"command_{effort.value}",
        {
            "min_psnr": min_psnr,
            "effort": report["effort"],
            "seconds": seconds,
            "predicted": predicted,
            "predicted_over_measured_seconds": predicted["seconds"] / held["seconds_median"],
            "predicted_less_measured_db": predicted["psnr_db"] - held["psnr_db_mean"],
            "held_out": rows,
            "dense_seconds": report["costs"]["dense_seconds"],
            "rounds": len(report["trials"]),
            "digest": report["digest"],
            "plan": report["plan"],
        },
    )


class Lines:
    """Progress, a line with the time for every step."""

    def step(self, text: str) -> None:
        """A step begins."""
        print(time.strftime("%T"), text, flush=True)


class PoolRunner(Runner):
    """Check and held-out images are entries of a pool, in an order that `order` gives."""

    order: Sequence[int] = ()

    def numbers(self, stage: str, count: int, begin: int) -> Sequence[int]:
        """Entries of the pool: check images from its begin on, held-out ones after a third of it."""
        first = begin if stage == "check" else begin + len(self.order) // 3
        return self.order[first : first + count]

    def details(self, stage: str, count: int, begin: int = 0) -> list[float]:
        """As the runner's, but for images of the pool."""
        return [log_detail(self.images.dense("check", number)) for number in self.numbers(stage, count, begin)]

    def measure(self, plan: Plan, stage: str, count: int, begin: int = 0, inner: str = "") -> Measured:
        """As the runner's, but for images of the pool."""
        if stage not in ("check", "held"):
            return super().measure(plan, stage, count, begin, inner)
        numbers = self.numbers(stage, count, begin)
        if len(numbers) < count:
            raise SystemExit("the pool is too small: give --pool more")
        for number in numbers:
            self.images.dense("check", number)
        return aggregate([self.record(plan, "check", number, inner, warm_up=False) for number in numbers])


def searches(pipeline: Pipeline, count: int, pool: int) -> list[dict[str, Any]]:
    """Everything up to the solver's problem once, the loop many times, each on images in another order."""
    effort = pipeline.effort
    problem = pipeline.prepare()
    runner = PoolRunner(pipeline.runner.images, pipeline.runner.base, pipeline.runner.progress)
    runner.images.prompts = list(CLASSES)
    each = []
    for number in range(count):
        order = list(range(pool))
        random.Random(number).shuffle(order)
        runner.order = order
        found = Loop(runner, problem, pipeline.budget, effort).run()
        held, chosen = found.held, found.chosen
        # Images that neither the search nor the confirmation has used.
        first = pool // 3
        used = {*order[: effort.checks], *order[first : first + effort.held_out * held.attempts]}
        runner.order = [entry for entry in order if entry not in used]
        fresh = runner.measure(chosen.plan, "check", min(len(runner.order), MOST_IMAGES))
        each.append(
            {
                "digest": chosen.plan.digest,
                "rounds": len(found.trials),
                "attempts": held.attempts,
                "predicted": held.predicted(),
                "solved_seconds": chosen.seconds,
                "held_out_db": held.measured.mean_psnr,
                "held_out_seconds": held.measured.median_seconds,
                "fresh_db": fresh.mean_psnr,
                "gain": chosen.gain,
            }
        )
        values = f"{held.measured.mean_psnr:.2f} dB held out, {fresh.mean_psnr:.2f} dB fresh"
        runner.progress.step(f"run {number + 1}: {values}")
    return each


@app.command()
def compare(
    plans: Annotated[list[str], typer.Argument(help="Plan files or names; seconds are compared with the first.")],
    images: int = 12,
    seed: int = 888_000,
    out: Path = OUT,
) -> None:
    """Plans on the same new images, in turns, each round beginning with another plan after one warm-up."""
    subject = load_subject("zoo:landscape")
    loaded = {Path(name).stem: load_plan(name) for name in plans}
    metrics: dict[str, list[tuple[float, float, float]]] = {name: [] for name in loaded}
    for plan in loaded.values():
        sparvar.compile(subject.model, plan)
        subject.draw(subject.model, 0, seed)
    for number in range(images):
        sparvar.detach(subject.model)
        reference = subject.draw(subject.model, number % len(CLASSES), seed + number)
        names = list(loaded)
        names = names[number % len(names) :] + names[: number % len(names)]
        for name in [names[-1], *names]:  # the first draw after a dense one is a warm-up, overwritten below
            sparvar.compile(subject.model, loaded[name])
            started = time.perf_counter()
            image = subject.draw(subject.model, number % len(CLASSES), seed + number)
            seconds = time.perf_counter() - started
            quality = psnr(image, reference), ssim(image, reference)
            metrics[name] = [*metrics[name][:number], (*quality, seconds)]
        print(f"image {number + 1} of {images}", flush=True)
    first = metrics[next(iter(metrics))]
    found = {
        name: {
            "digest": loaded[name].digest,
            "psnr_db": {**spread([row[0] for row in rows]), "mean": statistics.mean(row[0] for row in rows)},
            "ssim_mean": statistics.mean(row[1] for row in rows),
            "seconds": spread([row[2] for row in rows]),
            "seconds_over_first": spread([row[2] / base[2] for row, base in zip(rows, first, strict=True)]),
            "psnr_over_first_db": statistics.mean(row[0] - base[0] for row, base in zip(rows, first, strict=True)),
        }
        for name, rows in metrics.items()
    }
    print(json.dumps(found, indent=1))
    add(out, "compare", {"images": images, "seed": seed, "plans": found})


def spread(values: list[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


@app.command()
def predicted(
    works: Annotated[list[Path], typer.Argument(help="Journals (PLAN.work) of calibrations.")],
    images: Annotated[int, typer.Option(help="That check a plan, and as many held out.")] = 8,
    draws: int = 2000,
    name: Annotated[str, typer.Option(help="Added to the name of the part.")] = "",
    out: Path = OUT,
) -> None:
    """How well some of a plan's images tell the mean PSNR of as many others, with their detail and without.

    A bootstrap over seeds and classes: both are drawn at random from the check and held-out images of each plan.
    """
    plans: list[tuple[list[float], list[float]]] = []
    for work in works:
        psnr: dict[str, dict[str, float]] = {}
        for line in (work / "journal.jsonl").read_text().splitlines()[1:]:
            entry = json.loads(line)
            stage, _, rest = entry["key"].partition("/")
            digest, _, number = rest.partition("/")
            if stage in ("check", "held") and number.isdigit():
                psnr.setdefault(digest, {})[f"{stage}-{number}"] = psnr_of_mse(entry["value"]["mse"])
        details = {
            image: log_detail(load_file(work / f"{image}.safetensors")["image"])
            for image in sorted({image for values in psnr.values() for image in values})
        }
        plans += [
            ([details[image] for image in values], list(values.values()))
            for values in psnr.values()
            if len(values) >= 2 * images
        ]
    chance = random.Random(0)
    errors: dict[str, list[float]] = {"mean": [], "mean_and_detail": []}
    for known, values in plans:
        for _ in range(draws):
            order = chance.sample(range(len(values)), 2 * images)
            check, rest = order[:images], order[images:]
            mean = statistics.mean(values[at] for at in check)
            gain = detail_gain([known[at] for at in check], [values[at] for at in check], [known[at] for at in rest])
            wanted = statistics.mean(values[at] for at in rest)
            errors["mean"].append(mean - wanted)
            errors["mean_and_detail"].append(mean + gain - wanted)
    found = {
        name: {
            "standard_deviation_db": statistics.pstdev(values),
            "within_1_db": sum(abs(value) <= 1 for value in values) / len(values),
        }
        for name, values in errors.items()
    }
    correlations = [statistics.correlation(*plan) for plan in plans]
    print(json.dumps(found, indent=1))
    part = {"plans": len(plans), "images": images, "draws": draws, "correlation": spread(correlations), **found}
    # The name of the part under which the committed results have it.
    add(out, f"foretold_{images}{name and '_' + name}", part)


@app.command()
def journal(
    plans: Annotated[list[str], typer.Argument(help="Plan files or names.")],
    work: Annotated[Path, typer.Option(help="Journal for `predicted`; a stopped benchmark goes on with it.")],
    images: int = 32,
    seed: int = 1,
) -> None:
    """Run plans on images of a seed that no calibration has drawn with."""
    subject = load_subject("zoo:landscape")
    base, labels = base_plan(subject), list(CLASSES)
    with Journal(work, {"seed": seed}, resume=True) as kept:
        images_of = Images(subject, labels, AttachedModel(subject.model, "eager"), kept, seed)
        runner = Runner(images_of, base, Lines())
        try:
            for plan in map(load_plan, plans):
                found = runner.measure(plan, "check", images)
                print(f"{plan.digest}: {found.mean_psnr:.2f} dB, {found.median_seconds:.2f} s", flush=True)
        finally:
            runner.model.detach()


@app.command()
def runs(
    work: Annotated[Path, typer.Option(help="Journal; a stopped benchmark goes on with it.")],
    count: int = 20,
    pool: int = 40,
    min_psnr: float = 32.0,
    effort: Search = Search.thorough,
    out: Path = OUT,
) -> None:
    """The search and its confirmation on many draws of images."""
    options = CalibrationOptions(effort=EFFORTS[effort], resume=True)
    subject, budget = load_subject("zoo:landscape"), Budget(min_psnr=min_psnr)
    with start_calibration(subject, list(CLASSES), budget, work, options, Lines()) as pipeline:
        found = searches(pipeline, count, pool)
    rates = {name: sum(run[name] >= min_psnr for run in found) / len(found) for name in ("held_out_db", "fresh_db")}
    seconds = [run["predicted"]["seconds"] / run["held_out_seconds"] for run in found]
    off = [run["predicted"]["psnr_db"] - run["held_out_db"] for run in found]
    add(
        out,
        f"runs_{effort.value}",
        {
            "min_psnr": min_psnr,
            "pool": pool,
            "effort": dataclasses.asdict(pipeline.effort),
            "met": rates,
            "plans": len({run["digest"] for run in found}),
            "predicted_over_measured_seconds": spread(seconds),
            "predicted_less_measured_db": spread(off),
            "within_1_db": sum(abs(value) <= 1 for value in off) / len(off),
            "within_15_percent": sum(abs(value - 1) <= 0.15 for value in seconds) / len(seconds),
            "each": found,
        },
    )


if __name__ == "__main__":
    app()
