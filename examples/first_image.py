"""Draw one image with sparse attention, and the same image densely to compare.

    python examples/first_image.py --label mountain --seed 7 --out first-image

Shows the one line that turns sparvar on, what it saves, and what it changes: writes ``dense.png`` and ``sparse.png``
and prints both times and the PSNR between the two. The graphs run as they were captured here, so that the first image
comes at once. With ``--inner inductor``, the default of ``torch.compile(model, backend="sparvar")``, Inductor compiles
them first, for half a minute or more.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from PIL import Image

from sparvar.zoo import landscape


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--label", default="mountain", help="class name, such as sea, city or snow")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("first-image"), help="folder of the two images")
    parser.add_argument("--inner", choices=("inductor", "eager"), default="eager", help="compiler of the graphs")
    parser.add_argument("--plan", default="auto", help="a plan's file or name; auto finds the one made for the model")
    parser.add_argument("--weights", type=Path, help="folder of other weights of the shipped model")
    asked = parser.parse_args()

    model = landscape(asked.weights)
    started = time.perf_counter()
    dense = model.generate(labels=[asked.label], seed=asked.seed)[0]  # [3, 512, 512] in [0, 1]
    dense_seconds = time.perf_counter() - started

    fast = torch.compile(model, backend="sparvar", options={"plan": asked.plan, "inner": asked.inner})
    fast.generate(labels=[asked.label], seed=asked.seed)  # captures, and with Inductor compiles, one graph per scale
    started = time.perf_counter()
    sparse = fast.generate(labels=[asked.label], seed=asked.seed)[0]
    sparse_seconds = time.perf_counter() - started

    asked.out.mkdir(parents=True, exist_ok=True)
    for name, image in (("dense", dense), ("sparse", sparse)):
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(asked.out / f"{name}.png")
    psnr = -10 * (dense - sparse).square().mean().log10().item()
    print(f"dense  {dense_seconds:5.2f} s")
    print(f"sparse {sparse_seconds:5.2f} s, {dense_seconds / sparse_seconds:.2f} times faster, {psnr:.1f} dB PSNR")


if __name__ == "__main__":
    main()
