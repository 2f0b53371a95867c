"""Put an artefact where it is asked for: the place held and checked, the whole moved there, its README."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from sparvar.artefact.files import pack
from sparvar.artefact.manifest.schema import MANIFEST, Manifest
from sparvar.artefact.trust import remember
from sparvar.errors import OutputError, message
from sparvar.files import locked
from sparvar.private_files import UnsafeFileError, tighten

NEEDS = {
    "aoti": "sparvar and torch of exactly the version below",
    "onnx": "sparvar, numpy and onnxruntime",
    "tensorrt": "sparvar, torch and TensorRT of exactly the versions below",
}


class Target:
    """The place of an artefact: a folder, or one file where its name ends in ``.sparvar``.

    Attributes:
        path: the place.
        work: a folder beside it that an export builds in, and where it finds what a stopped one compiled.

    Raises:
        OutputError: there can be no artefact.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.single = path, path.suffix == ".sparvar"
        self.work = path.with_name(f".{path.name}.partial")
        if not path.parent.is_dir():
            raise OutputError(message(str(path), "be in a folder that exists", "none", "make it, or name another"))
        if self.single and path.is_dir():
            must, remedy = "be a file or absent", "name a folder without .sparvar"
            raise OutputError(message(str(path), must, "a folder", remedy))
        if not self.single and path.exists() and not (path / MANIFEST).is_file():
            raise OutputError(message(str(path), "be absent or an artefact", "something else", "name another folder"))

    @contextlib.contextmanager
    def building(self) -> Iterator[Path]:
        """Yield an empty folder to build in, which no other export to the same place has meanwhile, and no other user.

        Raises:
            OutputError: the disk takes no more, another export is writing there, or others can write there.
        """
        must = "be written by one export at a time"
        held = OutputError(message(str(self.work), must, "another that is running", "wait for it"))
        with self._disk_errors():
            try:
                tighten(self.work)
            except UnsafeFileError as error:
                remedy = "what is compiled there is run: delete it, or name another place"
                raise OutputError(message(str(self.work), error.must, error.got, remedy)) from error
            with locked(self.work / "lock", held):
                folder = self.work / "artefact"
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                yield folder

    def publish(self, folder: Path) -> None:
        """Move the whole artefact in ``folder`` to its place, and trust it on this machine from now on."""
        digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
        if self.single:
            pack(folder, self.path)
        else:
            self._move(folder)
        remember(digest)
        shutil.rmtree(self.work, ignore_errors=True)

    def _move(self, folder: Path) -> None:
        """Put ``folder`` in its place; what stood there goes when the new one is there."""
        old = self.path.with_name(f".{self.path.name}.{os.getpid()}.old")
        if self.path.exists():
            os.replace(self.path, old)
        try:
            os.replace(folder, self.path)
        except OSError:
            if old.exists():
                os.replace(old, self.path)
            raise
        shutil.rmtree(old, ignore_errors=True)

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = "a full disk" if error.errno == errno.ENOSPC else error.strerror or str(error)
            remedy = "nothing was put there; make room and export again, which goes on where this stopped"
            raise OutputError(message(str(self.path), "be writable", reason, remedy)) from error


def readme(manifest: Manifest) -> str:
    """What goes with an artefact for whoever receives it, as Markdown."""
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
