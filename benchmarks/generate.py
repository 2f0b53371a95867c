"""`sparvar bench generate` into benchmarks/results; further arguments go to the command (`--quick`, `--help`)."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from sparvar.tools.cli import main

if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    file = Path(__file__).parent / "results" / f"generate-{device}.json"
    sys.argv[1:] = ["bench", "generate", "--json", str(file), *sys.argv[1:]]
    main()
