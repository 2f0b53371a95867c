"""``python -m sparvar.zoo.training``: train the landscape model from photographs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from sparvar.zoo.model import CLASSES, LandscapeVAR
from sparvar.zoo.tokenizer import BitTokenizer
from sparvar.zoo.training.data import load_photos, split_photos
from sparvar.zoo.training.loop import write_atomically
from sparvar.zoo.training.tokenizer import fit_tokenizer, train_decoder
from sparvar.zoo.training.transformer import train_transformer
from sparvar.zoo.weights import save_landscape


def main(
    data: Annotated[Path, typer.Option(help="Folder with one folder of .jpg photographs per class.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, logs and the trained model.")],
    seed: Annotated[int, typer.Option(help="Seed of weights, crops and noise.")] = 0,
) -> None:
    """Train tokenizer, decoder and transformer, and write OUT/weights.

    Stop with Ctrl-C; the same command goes on where it stopped. Losses on held-out photographs are appended to
    OUT/*.jsonl. The shipped weights took about three hours on two shared cores with AMX (bf16).
    """
    torch.manual_seed(seed)
    tokenizer = BitTokenizer()
    model = LandscapeVAR(tokenizer)
    photos = load_photos(data, tokenizer.image_side)
    if tuple(photos.classes) != CLASSES:
        raise typer.BadParameter(f"--data: its folders must be {', '.join(CLASSES)}, got {', '.join(photos.classes)}")
    train, held = split_photos(photos)
    out.mkdir(parents=True, exist_ok=True)
    fitted = out / "tokenizer.pt"
    if fitted.exists():
        tokenizer.load_state_dict(torch.load(fitted, weights_only=True))
    else:
        fit_tokenizer(tokenizer, train)
        write_atomically(fitted, lambda path: torch.save(tokenizer.state_dict(), path))
    figures = {"decoder": train_decoder(tokenizer, train, held, out)}
    try:
        figures["transformer"] = train_transformer(model, train, held, out)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    facts = {"photographs": len(train), "held_out": held.names, **figures}
    save_landscape(model, out / "weights", facts)
    typer.echo(json.dumps(facts, indent=2))


if __name__ == "__main__":
    typer.run(main)
