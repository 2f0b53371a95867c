"""The README that goes with an artefact, for whoever receives it."""

from __future__ import annotations

from collections.abc import Mapping

from sparvar.artefact.manifest.schema import Manifest

NEEDS = {
    "aoti": "sparvar and torch of exactly the version below",
    "onnx": "sparvar, numpy and onnxruntime",
    "tensorrt": "sparvar, torch and TensorRT of exactly the versions below",
}


def readme(manifest: Manifest) -> str:
    """Markdown."""
    channels, height, width = manifest.image
    first = manifest.inputs[0]
    lines = [
        f"# {manifest.model.name}",
        "",
        f"An image generator exported with {manifest.tool} on {manifest.created[:10]}: every scale of the model as a"
        " compiled program, the weights once, and the plan by which attention was made sparse. It runs without the"
        " model's source and compiles nothing.",
        "",
        "## Generate",
        "",
        *_usage(manifest),
        "",
        "## What is in it",
        "",
        f"- Images of {width} x {height} pixels, {channels} channels, in {len(manifest.schedule)} scales"
        f" ({', '.join(f'{h}x{w}' for h, w in manifest.schedule)}); one run of the programs makes {manifest.images}.",
        f"- Model family `{manifest.model.family}`, weights in {manifest.model.dtype}; licence of the weights:"
        f" {manifest.model.licence}.",
        f"- Plan `{manifest.plan.name}` ({manifest.plan.digest[:19]}...), in `{manifest.plan.file}`.",
    ]
    if first.kind == "class" and first.classes:
        lines.append(f"- Classes: {', '.join(first.classes)}.")
    for name, spec in manifest.formats.items():
        lines.append(f"- Format `{name}` for {spec.device}, {len(spec.programs)} programs; needs {NEEDS[name]}.")
        lines += [f"  - {key}: {_text(value)}" for key, value in sorted(spec.requires.items())]
    lines += ["", "## Memory", "", *_memory(manifest), "", "## Check it", ""]
    lines += [
        "`sparvar verify FOLDER` compares every file with its checksum in `manifest.json`, draws the golden image"
        " again and compares it with the recorded one. `sparvar inspect FOLDER` shows what each program does.",
        "",
    ]
    against = manifest.golden.facts.get("model_psnr_db")
    if against is not None:
        lines += [
            f"The golden image is what the programs drew where they were compiled, {against:.1f} dB of the model's own:"
            " rounding flips sampled bits, as another number of threads does in the model itself. Another kind of"
            " processor may draw another image from the same seed.",
            "",
        ]
    native = sorted({path for name, spec in manifest.formats.items() for path in spec.native_files(name)})
    if native:
        lines += [
            "## Native code",
            "",
            f"This artefact holds {len(native)} files of machine code. Loading it runs them: do so only if you trust"
            " where it comes from, and then say `--trust` (`trust=True`). No Python of the artefact is ever run, and it"
            " holds no pickles.",
            "",
            *(f"- `{path}` sha256 {manifest.files[path].sha256[:16]}..." for path in native),
            "",
        ]
    return "\n".join(lines)


def _usage(manifest: Manifest) -> list[str]:
    first = manifest.inputs[0]
    if first.kind == "class":
        label = first.classes[0] if first.classes else "0"
        given = f'["{label}"]' if first.classes else "[0]"
        return [
            "```",
            f"sparvar run FOLDER --label {label} --seed 7 --out image.png",
            "```",
            "",
            "```python",
            "import sparvar",
            "",
            'artefact = sparvar.load("FOLDER")',
            f"images = artefact.generate({given}, seed=7)  # [B, 3, H, W] in [0, 1]",
            "```",
        ]
    names = ", ".join(f"{each.name}={each.name}" for each in manifest.inputs if each.default is None)
    shapes = [f"# {each.name}: {each.dtype} {list(each.shape)}" for each in manifest.inputs if each.kind != "number"]
    return [
        "```python",
        "import sparvar",
        "",
        *shapes,
        'artefact = sparvar.load("FOLDER")',
        f"images = artefact.generate({names}, seed=7)  # [B, 3, H, W] in [0, 1]",
        "```",
    ]


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _memory(manifest: Manifest) -> list[str]:
    memory: Mapping[str, int] = manifest.memory
    return [f"- {name}: {value / 2**20:.1f} MiB" for name, value in memory.items()] or ["Not measured."]
