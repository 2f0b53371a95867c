"""The demo's figures as JSON values and as the closing table."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from rich.table import Table

from sparvar.evaluate.machine import device_name, machine
from sparvar.evaluate.timing import Spread, decode_median, scale_medians
from sparvar.tools.bench.demo import DemoResult
from sparvar.tools.console import show_table
from sparvar.tools.reports.text import change, decibels, faster, mebibytes, plural


def psnr_median(result: DemoResult) -> float:
    return statistics.median(image.psnr_db for image in result.images)


def ssim_median(result: DemoResult) -> float:
    return statistics.median(image.ssim for image in result.images)


def report(result: DemoResult) -> dict[str, Any]:
    """The content of ``report.json``. Seconds are of one image; a PSNR of identical images is null."""
    plan, attention, reference = result.plan, result.attention, result.reference
    assert attention is not None
    return {
        "dense_seconds": result.median(reference),
        "sparse_seconds": result.median("sparse"),
        "speedup": result.speedup(reference).median,
        "attention_speedup": attention.speedup,
        "attention_speedup_with_decision": attention.speedup_with_decision,
        "psnr_db": psnr_median(result),
        "ssim": ssim_median(result),
        "rewritten_sites": result.rewritten_sites,
        "planned_sites": plan.planned_sites(),
        "peak_memory_dense": result.peak[reference],
        "peak_memory_sparse": result.peak["sparse"],
        "peak_memory_method": result.peak_method,
        "plan_digest": plan.digest,
        "plan_name": plan.name,
        "device": device_name(result.device),
        "torch": torch.__version__,
        "baseline": reference,
        "baselines": {name: _baseline(result, name) for name in result.settings.baselines},
        "inner": result.settings.inner,
        "cfg": result.settings.cfg,
        "runs_per_image": result.settings.runs,
        "spread": {name: Spread.of(result.seconds(name)).as_dict() for name in result.timed},
        "first_image_seconds": result.first_image_seconds,
        "cold_start_seconds": result.cold_start,
        "index_mapping_seconds": result.mapping_seconds,
        "attention_seconds": {
            "sparse_sites_dense": attention.dense,
            "sparse_sites_sparse": attention.sparse,
            "deciding_sites_dense": attention.decide_dense,
            "deciding_sites_sparse": attention.decide,
            "whole_generation_dense": attention.all_dense,
        },
        "seconds_per_scale": {name: scale_medians(many) for name, many in result.timed.items()},
        "decode_seconds": {name: decode_median(many) for name, many in result.timed.items()},
        "schedule": [list(grid) for grid in plan.schedule],
        "layers": list(plan.layers),
        "images": [
            {"class": image.label, "seed": image.seed, "psnr_db": image.psnr_db, "ssim": image.ssim}
            for image in result.images
        ],
        "machine": machine(),
    }


def _baseline(result: DemoResult, name: str) -> dict[str, Any]:
    return {
        "seconds": result.median(name),
        "speedup": result.speedup(name).as_dict(),
        "peak_memory": result.peak[name],
    }


def rows(result: DemoResult) -> list[tuple[str, str, str, str]]:
    """(what, dense, sparse, verdict) for the closing table, in the terminal and on the page."""
    attention, reference = result.attention, result.reference
    assert attention is not None
    dense, sparse = result.peak[reference], result.peak["sparse"]
    times = [
        (
            "time per image" if name == "eager" else "time per image, dense with Inductor",
            f"{result.median(name):.2f} s",
            f"{result.median('sparse'):.2f} s",
            faster(result.speedup(name).median),
        )
        for name in result.settings.baselines
    ]
    spent = f"{attention.dense:.2f} s", f"{attention.sparse:.2f} s"
    ran, planned = result.rewritten_sites, result.plan.planned_sites()
    return [
        *times,
        ("attention at the sparse scales", *spent, faster(attention.speedup)),
        ("peak memory of one image", mebibytes(dense), mebibytes(sparse), change(dense, sparse)),
        ("PSNR against dense", "", decibels(psnr_median(result)), "median of the images"),
        ("SSIM against dense", "", f"{ssim_median(result):.3f}", "median of the images"),
        ("sites run as planned", "", f"{ran} of {planned}", "all" if ran == planned else "not all"),
        ("first image, compiling included", "", f"{result.first_image_seconds:.1f} s", "from the start of the program"),
    ]


def closing_table(result: DemoResult) -> Table:
    """The one table that a demo ends with."""
    title = f"sparvar demo: {plural(len(result.images), 'image')}, plan {result.plan.name}"
    lines = [(f"[bold]{what}[/]", *figures, f"[green]{verdict}[/]") for what, *figures, verdict in rows(result)]
    return show_table(title, ("", ">dense", ">sparse", ""), lines)
