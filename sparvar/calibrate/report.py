"""What a calibration found, as ``calibration.json`` holds it."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from typing import Any

import torch

from sparvar.calibrate.candidates.candidate import candidate_text
from sparvar.calibrate.candidates.reductions import as_record
from sparvar.calibrate.fit.predict import Sites, relative_errors
from sparvar.calibrate.pipeline import Finished, Pipeline
from sparvar.scale_plans import held_share
from sparvar.version import __version__


def report(pipeline: Pipeline, finished: Finished) -> dict[str, Any]:
    """The report of a pipeline that has just finished, as JSON values."""
    found, problem, plan = finished.found, finished.problem, finished.plan
    checked, held, kv, images = found.chosen.measured, found.held, problem.compression, pipeline.runner.images
    return {
        "budget": dataclasses.asdict(pipeline.budget),
        "effort": dataclasses.asdict(pipeline.effort),
        "target": None if pipeline.gpu is None else pipeline.gpu.name,
        "plan": json.loads(plan.dumps()),
        "digest": plan.digest,
        "predicted": held.predicted(),
        "checked": checked.as_dict() if checked else None,
        "held_out": {**held.measured.as_dict(), "max_error": held.error},
        "held_out_attempts": held.attempts,
        "new_prompts": images.held_prompts != images.prompts,
        "all_dense": plan.all_dense,
        "nearest": found.nearest,
        "trials": [trial.as_dict() for trial in found.trials],
        "front": found.front,
        "others": {name: other.as_dict() for name, other in finished.others.items()},
        "screened": {str(setting): score for setting, score in problem.screened.items()},
        "decisions": finished.decisions,
        "pruning": finished.pruning,
        "left_out": None if problem.effects is None else as_record(problem.effects),
        "kv": None if kv is None else kv.as_record() | {"plan_held_share": held_share(plan)},
        "per_image": found.per_image,
        "costs": problem.costs.as_dict(),
        "costs_cached": problem.costs_cached,
        "sensitivity": dataclasses.asdict(problem.sensitivity),
        "sites": site_records(problem.sites, len(plan.layers)),
        "machine": {"device": problem.costs.device, "torch": torch.__version__, "sparvar": __version__},
        "calibration_seconds": time.monotonic() - pipeline.begun,
    }


def site_records(sites: Sites, layers: int) -> list[dict[str, Any]]:
    """One record per (scale, layer): means over the observed generations.

    ``entropy`` per head (nats); ``rho``, the share of low-entropy queries; ``sink_mass``, the share of softmax mass on
    the prefix and the first n scales, n = 1, 2, ...; ``window_mass``, distance in scales to side to the share inside a
    tile's windows; and of every candidate ``relative_error`` (root of squares, as a share of the dense output's),
    ``relative_error_by_head``, ``recall`` and ``kept`` (shares of softmax mass and of keys).
    """
    found = []
    for (scale, layer), sums in sorted(sites.items()):
        calls = sums["calls"][0]
        windows: dict[str, dict[str, float]] = {}
        for place, values in sums.get("near", {}).items():
            distance, side = place.split("/")
            windows.setdefault(distance, {})[side] = values[0] / calls
        norms = sums.get("norm_seen", [])
        names = {candidate: candidate_text(candidate) for candidate in sums["errors"]}
        found.append(
            {
                "scale": scale,
                "layer": layer,
                "entropy": [value / calls for value in sums["entropy"]],
                "rho": sums["rho"][0] / calls,
                "sink_mass": [value / calls for value in sums.get("sink", [])],
                "window_mass": windows,
                "relative_error": {
                    name: math.sqrt(relative_errors(sites, scale, layers, candidate)[layer])
                    for candidate, name in names.items()
                },
                "relative_error_by_head": {
                    name: [
                        math.sqrt(error / max(norm, 1e-30))
                        for error, norm in zip(sums["errors"][candidate], norms, strict=True)
                    ]
                    for candidate, name in names.items()
                },
                "recall": {names[candidate]: values[0] / calls for candidate, values in sums["recall"].items()},
                "kept": {names[candidate]: values[0] / calls for candidate, values in sums["kept"].items()},
            }
        )
    return found
