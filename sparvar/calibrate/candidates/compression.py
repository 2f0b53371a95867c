"""A cache that holds no more than a stated share: which method loses least, and what it makes of the solver's cases.

Every layer is compressed, so that none is left to a pruned span, and none may decide columns, which needs all keys of
the scales before (`sparvar.scale_plans` refuses both). What is left to the solver are windows (csla), dropped guidance
and skipped scales.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparvar.calibrate.measure.images import STAGES
from sparvar.calibrate.measure.kv_statistics import kv_statistics
from sparvar.calibrate.measure.measured import Measured
from sparvar.calibrate.measure.runner import Runner
from sparvar.calibrate.search.solver import Case
from sparvar.errors import OptionError, PlanError, SparvarError, message
from sparvar.scale_plans import KVCompression, Plan, hack, held_share, local, scalekv

METHODS = ("local", "scalekv", "hack")
NARROW = "bfloat16"
"""Type in which the best method is tried, too, where the model computes in float32: twice as many keys."""


@dataclass(frozen=True)
class Compression:
    """The compression that calibration goes on with.

    Attributes:
        plan: dense attention over the cache that it leaves.
        measured: generations of it, compiled and timed like the plans of the loop.
        tried: method to PSNR (dB) and share of the cache that it holds.
    """

    plan: Plan
    measured: Measured
    tried: Mapping[str, Mapping[str, float]]

    def as_record(self) -> dict[str, Any]:
        """For ``calibration.json``."""
        kv = self.plan.kv
        assert kv is not None
        return {
            "method": kv.method,
            "store": kv.store,
            "held_share": held_share(self.plan),
            "psnr_db": self.measured.mean_psnr,
            "tried": {name: dict(found) for name, found in self.tried.items()},
        }


def choose_compression(runner: Runner, share: float, probes: int, min_psnr: float | None) -> Compression:
    """The method that loses least at ``share`` of whole caches, with dense attention over what it leaves.

    Args:
        runner: draws.
        share: bytes of keys and values held between two scales at most, of whole caches.
        probes: generations of each method.
        min_psnr: the budget, or None.

    Raises:
        OptionError: the share leaves nothing to drop, or less than one key.
        SparvarError: no method keeps ``min_psnr``; the nearest is named.
    """
    base = runner.base
    runner.progress.step("what the methods that compress the KV cache measure")

    def measure() -> dict[str, Any]:
        runner.model.detach()
        images = runner.images
        found = kv_statistics(images.subject, images.prompts[:1], images.seed * 10_000 + STAGES["observe"])
        return {"selectivity": found.selectivity, "variance": found.variance}

    found = runner.journal.get("kv statistics", measure)
    selectivity = [{int(scale): value for scale, value in layer.items()} for layer in found["selectivity"]]
    variance: list[list[float]] = found["variance"]
    budget = int(share * base.keys(base.scales))

    def make(method: str, store: str) -> KVCompression:
        keys = budget * 2 if store == NARROW else budget
        if method == "local":
            return local(base, keys, store=store)
        if method == "hack":
            return hack(base, variance, keys, store=store)
        return scalekv(base, selectivity, keys, store=store)

    try:
        plans = {method: base.replace(kv=make(method, "same")) for method in METHODS}
    except PlanError as error:
        least, most = max(1, base.sinks) / base.keys(base.scales), base.keys(base.scales - 1) / base.keys(base.scales)
        must = f"be from {least:.2g}, the sinks, to below {most:.2g}, what the cache holds before the last scale"
        raise OptionError(message("--max-kv", must, share, str(error))) from error
    tried: dict[str, Measured] = {}

    def run(name: str) -> None:
        runner.progress.step(f"{100 * share:.3g} % of the KV cache: {name}")
        tried[name] = runner.probe(plans[name], probes)

    for method in METHODS:
        run(method)
    best = max(tried, key=lambda name: tried[name].mean_psnr)
    if base.model.dtype == "float32" and 2 * budget < base.keys(base.scales - 1):
        name = f"{best} in {NARROW}"
        plans[name] = base.replace(kv=make(best, NARROW))
        run(name)
        best = max(tried, key=lambda name: tried[name].mean_psnr)
    if min_psnr is not None and tried[best].mean_psnr < min_psnr:
        got = f"{tried[best].mean_psnr:.1f} dB at best, by {best}, with nothing else left out"
        must = f"hold at most {100 * share:.3g} % of the KV cache at {min_psnr:g} dB"
        raise SparvarError(message("plan", must, got, "allow a larger cache, or less quality"))
    runner.progress.step("timing dense attention over what is left of the cache")
    measured = runner.time_dense(plans[best], probes)
    shares = {name: {"psnr_db": each.mean_psnr, "held_share": held_share(plans[name])} for name, each in tried.items()}
    return Compression(plans[best], measured, shares)


def compressed_cases(cases: Sequence[Case], found: Compression, dense: Measured | None) -> list[Case]:
    """The cases that are left with a compressed cache: windows alone, and what the compression costs and saves.

    Args:
        cases: of whole caches.
        found: the compression.
        dense: generations of dense attention over whole caches, timed by scale like ``found.measured``; None where
            seconds are those of another machine, which say nothing of it.
    """
    kept = []
    layers = len(found.plan.layers)
    faster = (
        {}
        if dense is None
        else {at: dense.scale_seconds[at] - seconds for at, seconds in found.measured.scale_seconds.items()}
    )
    for case in cases:
        if any(scale.must_map for scale in case.scales):
            continue
        scales = tuple(
            dataclasses.replace(
                scale,
                mapped=np.zeros((1, layers)),
                mapped_seconds=np.zeros(1),
                # Option 0 is dense attention over what is left, which takes less than over everything.
                local_seconds=np.concatenate(
                    ([0.0], np.asarray(scale.local_seconds)[1:] + faster.get(scale.scale, 0.0) / layers)
                ),
            )
            for scale in case.scales
        )
        kept.append(
            dataclasses.replace(
                case,
                scales=scales,
                decide_seconds=max(case.decide_seconds, 1e-9),
                image_mse=case.image_mse + found.measured.image_mse,
            )
        )
    return kept
