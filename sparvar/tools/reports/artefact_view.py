"""What `sparvar inspect` shows of an artefact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sparvar.artefact import FormatSpec, Manifest, ProgramSpec, opened
from sparvar.tools.console import show_table
from sparvar.tools.reports.text import grid_text

COLOURS = {"dense": "white", "decide": "yellow", "cs4a": "cyan", "csla": "green"}
LETTERS = {"dense": "·", "decide": "D", "cs4a": "4", "csla": "L"}


def is_artefact(path: Path) -> bool:
    """Whether a path is one of an artefact, rather than of a plan."""
    return path.is_dir() or path.suffix == ".sparvar"


def scale_rows(manifest: Manifest, spec: FormatSpec) -> list[dict[str, Any]]:
    """Per scale: its grid, kind of each layer, programs, bytes and multiply-adds of a generation."""
    kinds: dict[int, list[str]] = {}
    rows: dict[int, dict[str, Any]] = {}
    for step in spec.steps:
        program = spec.programs[step.program]
        scale = 0 if program.scale is None else program.scale
        row = rows.setdefault(
            scale, {"scale": scale, "programs": [], "bytes": 0, "flops": 0, "dense_flops": 0, "workspace": 0}
        )
        if step.program not in row["programs"]:
            row["programs"].append(step.program)
            row["bytes"] += manifest.files[program.file].bytes
        runs = 1 if step.layers is None else len(step.layers)
        row["flops"] += runs * program.flops
        row["dense_flops"] += runs * program.dense_flops
        row["workspace"] = max(row["workspace"], program.workspace)
        if step.layers is not None:
            kinds.setdefault(scale, []).extend([program.kind] * runs)
    for scale, row in rows.items():
        row["kinds"] = kinds.get(scale, [])
        row["grid"] = list(manifest.schedule[scale - 1]) if 1 <= scale <= len(manifest.schedule) else None
    return [rows[scale] for scale in sorted(rows)]


def facts(manifest: Manifest) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "model": vars(manifest.model),
        "plan": vars(manifest.plan),
        "images": manifest.images,
        "image": list(manifest.image),
        "memory": dict(manifest.memory),
        "bytes": sum(each.bytes for each in manifest.files.values()),
        "formats": {
            name: {"device": spec.device, "requires": dict(spec.requires), "scales": scale_rows(manifest, spec)}
            for name, spec in manifest.formats.items()
        },
    }


def view(path: Path) -> tuple[Manifest, RenderableType]:
    """The manifest of an artefact and what to print of it."""
    manifest = opened(path)[0]
    parts: list[RenderableType] = [_head(manifest)]
    for name, spec in manifest.formats.items():
        parts += [Text(""), _table(manifest, name, spec)]
    legend = Text("layers: ")
    for kind, letter in LETTERS.items():
        legend.append(f"{letter} {kind}  ", style=COLOURS[kind])
    return manifest, Group(*parts, legend)


def _head(manifest: Manifest) -> Text:
    channels, height, width = manifest.image
    size = sum(each.bytes for each in manifest.files.values())
    lines = [
        f"{manifest.model.name} ({manifest.model.family}, {manifest.model.dtype}), made by {manifest.tool}",
        f"plan {manifest.plan.name} {manifest.plan.digest[:19]}",
        f"{manifest.images} image{'s' if manifest.images > 1 else ''} of {width}x{height}x{channels} a run;"
        f" licence of the weights: {manifest.model.licence}",
        f"{len(manifest.files)} files, {_mib(size)}; memory "
        + ", ".join(f"{name} {_mib(value)}" for name, value in manifest.memory.items()),
    ]
    return Text("\n".join(lines))


def _table(manifest: Manifest, name: str, spec: FormatSpec) -> Table:
    needs = ", ".join(f"{key} {value}" for key, value in spec.requires.items() if isinstance(value, str))
    rows = scale_rows(manifest, spec)
    lines: list[tuple[str | Text, ...]] = [
        (
            str(row["scale"]) if row["grid"] else "",
            grid_text(row["grid"] or ()),
            layer_text(row["kinds"]),
            " ".join(_short(program, spec.programs[program]) for program in row["programs"]),
            *_amounts(row["bytes"], row["workspace"], row["flops"], row["dense_flops"]),
        )
        for row in rows
    ]
    size, flops, dense = (sum(row[key] for row in rows) for key in ("bytes", "flops", "dense_flops"))
    amounts = _amounts(size, max(row["workspace"] for row in rows), flops, dense)
    lines.append(("all", "", "", str(len(spec.programs)), *amounts))
    columns = (">scale", ">grid", "layers", "programs", ">size", ">workspace", ">GFLOP", ">saved")
    return show_table(f"{name} for {spec.device} ({needs})", columns, lines)


def _amounts(size: int, workspace: int, flops: int, dense_flops: int) -> tuple[str, ...]:
    saved = f"{1 - flops / dense_flops:.0%}" if dense_flops else ""
    return _mib(size), _mib(workspace), f"{flops / 1e9:.2f}", saved


def layer_text(kinds: Sequence[str]) -> Text:
    """One letter per layer."""
    text = Text()
    for kind in kinds:
        text.append(LETTERS.get(kind, "?"), style=COLOURS.get(kind, "white"))
    return text


def _short(name: str, program: ProgramSpec) -> str:
    return program.kind if program.scale is not None else name


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 1 << 20 else f"{size / 1024:.0f} KiB"
