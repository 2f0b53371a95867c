"""ONNX programs in onnxruntime, with NumPy alone around them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparvar.artefact.tensors import TensorFile
from sparvar.errors import ArtefactError, message


class OnnxEngine:
    """Loads and runs one artefact's ONNX programs; weights are read once and shared by all sessions.

    Args:
        device: ``cpu`` or ``cuda``: the execution provider.
        threads: of onnxruntime; the machine's cores if 0.
    """

    name = "onnx"

    def __init__(self, device: str = "cpu", threads: int = 0) -> None:
        import numpy
        import onnxruntime

        self.numpy, self.ort = numpy, onnxruntime
        self.device = device
        self.threads = threads or (os.cpu_count() or 1)
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
        available = onnxruntime.get_available_providers()
        if provider not in available:
            raise ArtefactError(
                message(
                    "device", f"be one of onnxruntime's ({', '.join(available)})", device, "install onnxruntime-gpu"
                )
            )
        self.provider = provider

    def tensors(self, file: TensorFile, names: Sequence[str]) -> dict[str, Any]:
        """Tensors of a file, as values of onnxruntime."""
        return {name: self.ort.OrtValue.ortvalue_from_numpy(file.numpy(name)) for name in names}

    def buffer(self, shape: Sequence[int], dtype: str) -> Any:
        """Memory that programs write into."""
        return self.ort.OrtValue.ortvalue_from_numpy(self.numpy.zeros(tuple(shape), dtype=dtype))

    def tensor(self, value: Any, dtype: str) -> Any:
        """A value as onnxruntime takes it."""
        return self.ort.OrtValue.ortvalue_from_numpy(self.numpy.asarray(value, dtype=dtype, order="C"))

    def program(self, path: Path, runners: int) -> Any:
        """A session; onnxruntime lets any number of threads call it."""
        options = self.ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        # Weights stay as they lie in the file that all sessions map; packed ones would be copies, a set per session.
        options.add_session_config_entry("session.disable_prepacking", "1")
        # An arena keeps the most that any program needed, and planned blocks one more per program: together three times
        # what is in use.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        try:
            session = self.ort.InferenceSession(str(path), options, providers=[self.provider])
        except Exception as error:  # onnxruntime's own classes derive from nothing narrower
            reason = str(error).splitlines()[0]
            raise ArtefactError(
                message(f"program {path.name}", "be an ONNX model that onnxruntime can load", reason, "export it again")
            ) from error
        inputs = [each.name for each in session.get_inputs()]
        outputs = [each.name for each in session.get_outputs()]

        def run(values: list[Any]) -> Sequence[Any]:
            found: Sequence[Any] = session.run_with_ort_values(outputs, dict(zip(inputs, values, strict=True)))
            return found

        return run

    def load_native(self, native: Mapping[Path, str]) -> None:
        """There is no native code in ONNX artefacts."""

    def running(self) -> Any:
        """Around a run."""
        return contextlib.nullcontext()

    def images(self, value: Any, wanted: int) -> Any:
        """The first images of a run's result."""
        return value.numpy()[:wanted]

    def joined(self, parts: Sequence[Any]) -> Any:
        """Images of several runs as one array."""
        return parts[0] if len(parts) == 1 else self.numpy.concatenate(list(parts))

    def check(self, requires: Mapping[str, Any]) -> None:
        """Compare onnxruntime's version with the oldest that knows the programs' opset.

        Raises:
            ArtefactError: it is older.
        """
        wanted = str(requires.get("onnxruntime", "0"))
        if _version(self.ort.__version__) < _version(wanted):
            raise ArtefactError(
                message("onnxruntime", f"be {wanted} or newer", self.ort.__version__, "pip install -U onnxruntime")
            )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
