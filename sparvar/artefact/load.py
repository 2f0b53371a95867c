"""Load an artefact and generate with it."""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparvar.artefact.executor import Chain, Timer
from sparvar.artefact.files import check_files, unpack
from sparvar.artefact.inputs import Request, requests
from sparvar.artefact.manifest import FormatSpec, Manifest, read_manifest
from sparvar.artefact.noise import NumpyNoiseStream, TorchNoiseStream
from sparvar.artefact.tensors import TensorFile
from sparvar.artefact.trust import require_trust
from sparvar.errors import ArtefactError, OptionError, message

RUNTIMES = {"aoti": ("torch",), "onnx": ("numpy", "onnxruntime"), "tensorrt": ("torch", "tensorrt")}
"""Packages that each format needs, in the order in which formats are tried."""
KEPT = ("weights/", "constants/", "buffers/")


class Session:
    """Memory of one generation at a time: the buffers of keys and values, made once and used again.

    Not to be used by two threads at once; `Artefact.generate` takes care of that.
    """

    def __init__(self, artefact: Artefact) -> None:
        self._artefact = artefact
        used = [each for each in artefact.manifest.buffers if each.name in artefact.chain.slots]
        buffers = {each.name: artefact.engine.buffer(each.shape, each.dtype) for each in used}
        self._values = {**artefact.tensors, **buffers}

    def run(self, request: Request, timer: Timer | None = None) -> Any:
        """One run of the programs: images [images, 3, H, W] of one request."""
        artefact, engine = self._artefact, self._artefact.engine
        streams = NumpyNoiseStream if engine.name == "onnx" else TorchNoiseStream
        noise: Any = streams(artefact.manifest.noise, request.seed, artefact.manifest.images)
        dtypes = {each.name: each.dtype for each in artefact.manifest.noise}
        given = {each.name: each for each in artefact.manifest.inputs}
        values = {f"inputs/{name}": engine.tensor(value, given[name].dtype) for name, value in request.values.items()}
        table = artefact.chain.table({**self._values, **values})
        with engine.running():
            return artefact.chain.run(
                artefact.programs, table, lambda name: engine.tensor(noise.next(name), dtypes[name]), timer
            )


class Artefact:
    """A loaded artefact; :func:`load` makes it.

    Attributes:
        folder: where its files are.
        manifest: what it holds.
        format: the format in use, ``name`` its name.
        load_seconds: time that loading took.
    """

    load_seconds = 0.0

    def __init__(self, folder: Path, manifest: Manifest, name: str, device: str | None, sessions: int) -> None:
        self.folder, self.manifest, self.name = folder, manifest, name
        self.format: FormatSpec = manifest.formats[name]
        self.engine = _engine(name, device or self.format.device)
        self.engine.check(self.format.requires)
        self.engine.adopt([folder / each for each in self.format.native])
        self.chain = Chain(self.format.steps, KEPT)
        self.tensors = self._tensors()
        self.programs = {
            each: self.engine.program(folder / program.file, sessions) for each, program in self.format.programs.items()
        }
        self._free = [Session(self) for _ in range(sessions)]
        self._waiting = threading.Condition()

    def _tensors(self) -> dict[str, Any]:
        found = {}
        for kind in ("weights", "constants"):
            path = self.folder / f"{kind}.safetensors"
            wanted = [name.removeprefix(f"{kind}/") for name in self.chain.names if name.startswith(f"{kind}/")]
            shared = self.format.initialisers if kind == "weights" else ()
            if wanted or shared:
                file = TensorFile(path)
                if shared:
                    self.engine.share(self.engine.tensors(file, shared))
                tensors = self.engine.tensors(file, wanted)
                found.update({f"{kind}/{name}": tensor for name, tensor in tensors.items()})
        return found

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A session of one's own; waits until one is free."""
        with self._waiting:
            while not self._free:
                self._waiting.wait()
            session = self._free.pop()
        try:
            yield session
        finally:
            with self._waiting:
                self._free.append(session)
                self._waiting.notify()

    def generate(self, *first: Any, seed: int = 0, timer: Timer | None = None, **given: Any) -> Any:
        """Draw images.

        Args:
            first: the artefact's first input: class names or numbers of as many images as are wanted, or embeddings
                of prompts, one row of the first axis per image.
            seed: of the noise; image i uses ``seed + i``.
            timer: called with a program's name and seconds after each of its runs.
            given: the other inputs by name, such as ``cfg``; `Manifest.inputs` lists them.

        Returns:
            Images [B, 3, H, W] in [0, 1], float32: a torch tensor, or a NumPy array from ``onnx``. More images than
            one run of the programs makes are drawn in several runs.

        Raises:
            ArtefactError: an input is unknown, missing, or has a wrong value or shape.
        """
        parts = []
        for request in requests(self.manifest, first, seed, given):
            with self.session() as session:
                images = session.run(request, timer)
            parts.append(self.engine.images(images, request.wanted))
        return self.engine.joined(parts)

    def warm_up(self, runs: int = 1) -> None:
        """Run every program of every session, so that the first request finds caches and pages warm."""
        request = next(iter(requests(self.manifest, _defaults(self.manifest), 0, {})))
        sessions = []
        with self._waiting:
            while len(self._free) < 1:
                self._waiting.wait()
            sessions, self._free = self._free, []
        try:
            for session in sessions:
                for _ in range(runs):
                    session.run(request)
        finally:
            with self._waiting:
                self._free += sessions
                self._waiting.notify_all()


def _defaults(manifest: Manifest) -> tuple[Any, ...]:
    """Some value for the first input, where it is classes."""
    first = manifest.inputs[0]
    if first.kind == "class":
        return ([0] * manifest.images,)
    raise OptionError(
        message("warm_up", "be given inputs where the artefact takes embeddings", "none", "call generate instead")
    )


def _engine(name: str, device: str) -> Any:
    if name == "aoti":
        from sparvar.artefact.engines.aoti import AotiEngine

        return AotiEngine(device)
    if name == "onnx":
        from sparvar.artefact.engines.onnx import OnnxEngine

        return OnnxEngine(device)
    from sparvar.artefact.engines.tensorrt import TensorRtEngine

    return TensorRtEngine(device)


def choose_format(manifest: Manifest, name: str | None) -> str:
    """The format to use: the one named, else the first whose packages are installed.

    Raises:
        ArtefactError: the artefact has no such format, or its packages are missing.
    """
    have = ", ".join(manifest.formats)
    if name is not None:
        if name not in manifest.formats:
            raise ArtefactError(message("format", f"be one of the artefact's: {have}", repr(name)))
        missing = _missing(name)
        if missing:
            raise ArtefactError(
                message(f"format {name}", f"find {', '.join(missing)}", "no such package", "install it")
            )
        return name
    for each in RUNTIMES:
        if each in manifest.formats and not _missing(each):
            return each
    needs = "; ".join(f"{each} needs {', '.join(RUNTIMES[each])}" for each in manifest.formats)
    raise ArtefactError(
        message("artefact", "find the packages of one of its formats", "none", f"install them: {needs}")
    )


def _missing(name: str) -> list[str]:
    return [package for package in RUNTIMES[name] if importlib.util.find_spec(package) is None]


def opened(path: str | os.PathLike[str]) -> tuple[Manifest, Path, str]:
    """The manifest of an artefact, its folder (unpacked where it is one file), and the manifest's sha256.

    Nothing else is read. Raises `ArtefactError`.
    """
    folder = Path(path)
    if folder.is_file():
        folder = unpack(folder)
    manifest, digest = read_manifest(folder)
    return manifest, folder, digest


def load(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    device: str | None = None,
    sessions: int = 1,
    trust: bool = False,
) -> Artefact:
    """Load an artefact: a folder, or the single file of one.

    Every file that will be read is checked against the manifest first. Nothing is unpickled and no Python of the
    artefact runs; formats with native code load it, which needs ``trust`` unless it was made on this machine.

    Args:
        path: of the folder or file.
        format: ``aoti``, ``onnx`` or ``tensorrt``; the first that is there and can run if None.
        device: ``cpu`` or ``cuda``; the one it was made for if None.
        sessions: generations that may run at once; each has buffers of its own for keys and values.
        trust: run native code of artefacts from elsewhere.

    Raises:
        ArtefactError: it is damaged, unsafe, not trusted, or made for another machine.
    """
    started = time.perf_counter()
    if sessions < 1:
        raise OptionError(message("sessions", "be at least 1", sessions))
    manifest, folder, digest = opened(path)
    name = choose_format(manifest, format)
    check_files(folder, manifest)
    require_trust(manifest, digest, name, trust)
    artefact = Artefact(folder, manifest, name, device, sessions)
    artefact.load_seconds = time.perf_counter() - started
    return artefact
