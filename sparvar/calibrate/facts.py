"""What was observed, per scale and layer, as ``calibration.json`` holds it."""

from __future__ import annotations

import math
from typing import Any

from sparvar.calibrate.candidates.candidate import candidate_text
from sparvar.calibrate.fit.predict import Sites, relative_errors


def facts(sites: Sites, layers: int) -> list[dict[str, Any]]:
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
        found.append(
            {
                "scale": scale,
                "layer": layer,
                "entropy": [value / calls for value in sums["entropy"]],
                "rho": sums["rho"][0] / calls,
                "sink_mass": [value / calls for value in sums.get("sink", [])],
                "window_mass": windows,
                "relative_error": {
                    candidate_text(each): math.sqrt(relative_errors(sites, scale, layers, each)[layer])
                    for each in sums["errors"]
                },
                "relative_error_by_head": {
                    candidate_text(each): [
                        math.sqrt(error / max(norm, 1e-30)) for error, norm in zip(errors, norms, strict=True)
                    ]
                    for each, errors in sums["errors"].items()
                },
                "recall": {candidate_text(each): values[0] / calls for each, values in sums["recall"].items()},
                "kept": {candidate_text(each): values[0] / calls for each, values in sums["kept"].items()},
            }
        )
    return found
