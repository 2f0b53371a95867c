"""Weights on disk: bf16 safetensors beside a JSON manifest with sizes and checksum."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sparvar.zoo.model import LandscapeVAR
from sparvar.zoo.tokenizer import BitTokenizer

FOLDER = Path(__file__).parent / "weights"


class LandscapeWeightsError(RuntimeError):
    """The weights are missing, damaged, or do not fit the model."""


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_landscape(model: LandscapeVAR, folder: Path, figures: dict[str, Any] | None = None) -> None:
    """Write ``folder/landscape.safetensors`` (bf16) and ``folder/landscape.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    weights, manifest = folder / "landscape.safetensors", folder / "landscape.json"
    tensors = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    temporary = weights.with_name(f".{weights.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary)
        os.chmod(temporary, 0o644)
        checksum = _checksum(temporary)
        os.replace(temporary, weights)
    finally:
        temporary.unlink(missing_ok=True)
    text = json.dumps(
        {
            "sha256": checksum,
            "width": model.start.shape[-1],
            "depth": len(model.blocks),
            "heads": model.heads,
            "dim": model.tokenizer.dim,
            "classes": list(model.classes),
            "parameters": sum(tensor.numel() for tensor in tensors.values()),
            "figures": figures or {},
        },
        indent=2,
    )
    temporary = manifest.with_name(f".{manifest.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text + "\n")
        os.replace(temporary, manifest)
    finally:
        temporary.unlink(missing_ok=True)


def landscape(folder: Path | str | None = None) -> LandscapeVAR:
    """The trained landscape model, in fp32, ready to generate.

    Args:
        folder: where ``landscape.safetensors`` and ``landscape.json`` are; the shipped ones if None.

    Raises:
        LandscapeWeightsError: a file is missing, the checksum is not the manifest's, or a tensor does not fit.
    """
    place = FOLDER if folder is None else Path(folder)
    weights, manifest = place / "landscape.safetensors", place / "landscape.json"
    for path in (manifest, weights):
        if not path.is_file():
            raise LandscapeWeightsError(
                f"landscape weights: {path} must exist, found no file; reinstall the package, or train with"
                " python -m sparvar.zoo.training"
            )
    try:
        facts = json.loads(manifest.read_text())
        expected = facts["sha256"]
        tokenizer = BitTokenizer(dim=facts["dim"])
        shape = {"width": facts["width"], "depth": facts["depth"], "heads": facts["heads"]}
        classes = facts["classes"]
    except (ValueError, KeyError) as error:
        raise LandscapeWeightsError(
            f"landscape weights: {manifest} must be the manifest written with the weights, got {error!r};"
            " reinstall the package"
        ) from error
    found = _checksum(weights)
    if found != expected:
        raise LandscapeWeightsError(
            f"landscape weights: {weights} must have sha256 {expected[:16]}..., got {found[:16]}...;"
            " the file is damaged or was replaced: reinstall the package"
        )
    model = LandscapeVAR(tokenizer, classes=classes, **shape)
    try:
        tensors = load_file(weights)
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except (SafetensorError, RuntimeError) as error:
        raise LandscapeWeightsError(f"landscape weights: {weights} must fit the model, got: {error}") from error
    return model.eval().requires_grad_(False)
