"""Load an artefact and generate with it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sparvar import heap
from sparvar.artefact.execution.cuda_graphs import Graphs
from sparvar.artefact.execution.executor import Chain, Timer
from sparvar.artefact.execution.inputs import Request, requests
from sparvar.artefact.execution.noise import NumpyNoiseStream, TorchNoiseStream
from sparvar.artefact.files import check_files, unpack
from sparvar.artefact.formats import FORMATS
from sparvar.artefact.golden import golden_run
from sparvar.artefact.manifest.reading import read_manifest
from sparvar.artefact.manifest.schema import FormatSpec, Manifest
from sparvar.artefact.tensors import TensorFile
from sparvar.artefact.trust import require_trust
from sparvar.errors import ArtefactError, OptionError, message

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
        self._graphs: Graphs | None = None

    def run(self, request: Request, timer: Timer | None = None) -> Any:
        """One run of the programs: images [images, 3, H, W] of one request.

        With CUDA graphs the first run also captures them. A run with a ``timer`` calls the programs one by one.
        """
        artefact, engine = self._artefact, self._artefact.engine
        given = {each.name: each.dtype for each in artefact.manifest.inputs}
        values = {f"inputs/{name}": engine.tensor(value, given[name]) for name, value in request.values.items()}
        with engine.running():
            if artefact.graphs and timer is None:
                if self._graphs is None:
                    with artefact.alone:
                        self._graphs = self._captured(values, request.seed)
                return self._graphs.run(values, self._noise(request.seed))
            with artefact.alone if artefact.graphs else nullcontext():
                timed = timer is not None and engine.name == "aoti"
                programs = engine.timed(artefact.programs) if timed else artefact.programs
                table = artefact.chain.table({**self._values, **values})
                return artefact.chain.run(programs, table, self._noise(request.seed), timer)

    def _noise(self, seed: int) -> Callable[[str], Any]:
        manifest, engine = self._artefact.manifest, self._artefact.engine
        streams = NumpyNoiseStream if engine.name == "onnx" else TorchNoiseStream
        noise: Any = streams(manifest.noise, seed, manifest.images)
        dtypes = {each.name: each.dtype for each in manifest.noise}
        return lambda name: engine.tensor(noise.next(name), dtypes[name])

    def _captured(self, values: Mapping[str, Any], seed: int) -> Graphs:
        artefact = self._artefact
        given = {f"inputs/{each.name}": each.spec for each in artefact.manifest.inputs}
        given |= {each.name: each.spec for each in artefact.manifest.noise}
        programs = artefact.format.programs
        graphs = Graphs(
            artefact.chain,
            artefact.programs,
            self._values,
            given,
            lambda name: programs[name].scale,
            artefact.engine.device,
        )
        graphs.capture(values, self._noise(seed))
        return graphs


class Artefact:
    """A loaded artefact; :func:`load` makes it.

    Attributes:
        folder: where its files are.
        manifest: what it holds.
        format: the format in use, ``name`` its name.
        graphs: whether generations are replayed as CUDA graphs.
        load_seconds: time that loading took.
    """

    load_seconds = 0.0

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        name: str,
        device: str | None = None,
        sessions: int = 1,
        graphs: bool | None = None,
    ) -> None:
        self.folder, self.manifest, self.name = folder, manifest, name
        self.format: FormatSpec = manifest.formats[name]
        device = device or self.format.device
        kind = device.partition(":")[0]
        if name != "onnx" and kind != self.format.device:
            must = f"be {self.format.device}, which the programs were built for"
            raise ArtefactError(message("device", must, device, f"export the artefact for {kind}"))
        self.graphs = name == "aoti" and kind == "cuda" if graphs is None else graphs
        if self.graphs and (name, kind) != ("aoti", "cuda"):
            raise OptionError(message("graphs", "be left out but for aoti on a CUDA device", f"{name} on {kind}"))
        self.engine = _engine(name, device)
        self.engine.check(self.format.requires)
        self.engine.load_native({folder / each: manifest.files[each].sha256 for each in self.format.native})
        self.chain = Chain(self.format.steps, KEPT)
        self.tensors = self._tensors()
        # Programs are called by one thread at a time where graphs hold them: what many runners need, no graph may.
        self.alone = threading.Lock()
        runners = 1 if self.graphs else sessions
        self.programs = {
            each: self.engine.program(folder / program.file, runners) for each, program in self.format.programs.items()
        }
        self._sessions = sessions
        self._free = [Session(self) for _ in range(sessions)]
        self._waiting = threading.Condition()
        self._warming = threading.Lock()

    def _tensors(self) -> dict[str, Any]:
        found = {}
        for kind in ("weights", "constants"):
            path = self.folder / f"{kind}.safetensors"
            wanted = [name.removeprefix(f"{kind}/") for name in self.chain.names if name.startswith(f"{kind}/")]
            if wanted:
                tensors = self.engine.tensors(TensorFile(path), wanted)
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
        """Draw images. Threads may call this at once: each waits for a session of its own.

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

    def golden(self) -> tuple[Request, Any, float]:
        """The recorded request, the image that it must give (NumPy), and the PSNR in dB that it must have.

        Raises `ArtefactError` where the recording is not complete.
        """
        return golden_run(self.folder, self.manifest, self.name == "onnx")

    def warm_up(self, runs: int = 1) -> None:
        """Draw the golden image in every session, so that the first request finds pages, caches and graphs ready."""
        request = self.golden()[0]
        with self._warming, ExitStack() as stack:
            for session in [stack.enter_context(self.session()) for _ in range(self._sessions)]:
                for _ in range(runs):
                    session.run(request)


def _engine(name: str, device: str) -> Any:
    classes = {"aoti": "AotiEngine", "onnx": "OnnxEngine", "tensorrt": "TensorRtEngine"}
    return getattr(importlib.import_module(f"sparvar.artefact.engines.{name}"), classes[name])(device)


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
    for each in FORMATS:
        if each in manifest.formats and not _missing(each):
            return each
    needs = "; ".join(f"{each} needs {', '.join(FORMATS[each].packages)}" for each in manifest.formats)
    raise ArtefactError(
        message("artefact", "find the packages of one of its formats", "none", f"install them: {needs}")
    )


def _missing(name: str) -> list[str]:
    return [package for package in FORMATS[name].packages if importlib.util.find_spec(package) is None]


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
    graphs: bool | None = None,
    trust: bool = False,
    low_memory: bool = False,
) -> Artefact:
    """Load an artefact: a folder, or the single file of one.

    Every file that will be read is checked against the manifest first. Nothing is unpickled and no Python of the
    artefact runs; formats with native code load it, which needs ``trust`` unless it was made on this machine.

    Args:
        path: of the folder or file.
        format: ``aoti``, ``onnx`` or ``tensorrt``; the first that is there and can run if None.
        device: ``cpu`` or ``cuda``; the one it was made for if None.
        sessions: generations that may run at once; each has buffers of its own for keys and values.
        graphs: replay each scale as a CUDA graph; where there is a GPU if None.
        trust: run native code of artefacts from elsewhere.
        low_memory: give what a run frees back to the system at once, in this process from now on, so that its resident
            set stays at what the manifest states. Else the C library keeps some, with holes, to use again: a quarter
            more at the peak, and 2 to 4 % faster. On CPUs, with glibc, before other work has left holes.

    Raises:
        ArtefactError: it is damaged, unsafe, not trusted, or made for another machine.
        OptionError: ``sessions`` is below 1, or ``low_memory`` is asked where it cannot be had.
    """
    started = time.perf_counter()
    if sessions < 1:
        raise OptionError(message("sessions", "be at least 1", sessions))
    manifest, folder, digest = opened(path)
    name = choose_format(manifest, format)
    if low_memory:
        place = device or manifest.formats[name].device
        if place.partition(":")[0] != "cpu":
            raise OptionError(message("low memory", "be asked on a CPU", place, "leave it out"))
        heap.return_freed()
    check_files(folder, manifest)
    require_trust(manifest, digest, name, trust)
    artefact = Artefact(folder, manifest, name, device, sessions, graphs)
    artefact.load_seconds = time.perf_counter() - started
    return artefact
