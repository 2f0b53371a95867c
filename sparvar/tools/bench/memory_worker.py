"""One variant's peak memory, as JSON on the last line: run by `sparvar bench generate` in a process of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sparvar.evaluate.memory import live_peak, peak_memory
from sparvar.tools.bench.generate import GenerateSettings, build
from sparvar.zoo import CLASSES


def main(arguments: list[str]) -> None:
    """Arguments: variant, plan, inner compiler, guidance and, where it is not the shipped one, the weights' folder."""
    variant, plan, inner, cfg, *weights = arguments
    folder = Path(weights[0]) if weights else None
    settings = GenerateSettings(1, float(cfg), plan, inner, (variant,), folder, memory=False)
    model = build(settings, variant)
    model.generate(labels=[CLASSES[0]], seed=0, cfg=settings.cfg)
    with peak_memory(model.start.device) as peak:
        model.generate(labels=[CLASSES[0]], seed=0, cfg=settings.cfg)
    live = None
    if model.start.device.type == "cpu":
        live = live_peak(lambda: model.generate(labels=[CLASSES[0]], seed=0, cfg=settings.cfg))
    print(json.dumps({"bytes": peak.bytes, "method": peak.method, "live_bytes": live}))


if __name__ == "__main__":
    main(sys.argv[1:])
