"""AOTInductor packages: native code that torch loads, on the CPU or on a CUDA device."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparvar.artefact.tensors import TensorFile
from sparvar.errors import ArtefactError, message


class AotiEngine:
    """Loads and runs one artefact's packages.

    Args:
        device: ``cpu`` or ``cuda``, with a number where there are several.
    """

    name = "aoti"

    def __init__(self, device: str = "cpu") -> None:
        import torch

        import sparvar.kernels  # noqa: F401  programs call its ops

        self.torch = torch
        self.device = torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            must, remedy = "be cpu: torch finds no CUDA device", "export the artefact for the CPU, or mend CUDA"
            raise ArtefactError(message("device", must, device, remedy))

    def tensors(self, file: TensorFile, names: Sequence[str]) -> dict[str, Any]:
        """Tensors of a file: mapped from it on the CPU, copied once to another device."""
        found = {name: file.torch(name) for name in names}
        if self.device.type == "cpu":
            return found
        return {name: tensor.to(self.device) for name, tensor in found.items()}

    def buffer(self, shape: Sequence[int], dtype: str) -> Any:
        """Memory that programs write into."""
        from sparvar.kernels import kv_empty

        with self.torch.inference_mode(False):
            return kv_empty(tuple(shape), getattr(self.torch, dtype), self.device)

    def tensor(self, value: Any, dtype: str) -> Any:
        """A value on the engine's device."""
        return self.torch.as_tensor(value, dtype=getattr(self.torch, dtype)).to(self.device)

    def program(self, path: Path, runners: int) -> Any:
        """A loaded package; ``runners`` calls may run at once."""
        from sparvar.artefact.engines.torch_compat import package_runner

        try:
            return package_runner(path, runners, self.device)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ArtefactError(
                message(f"program {path.name}", "be a package that torch can load", reason, "export it again")
            ) from error

    def load_native(self, native: Mapping[Path, str]) -> None:
        """Load the CPU kernels that came with the artefact, by path and checksum: nothing is compiled here."""
        from sparvar.kernels import adopt_library

        for path, sha256 in native.items():
            adopt_library(path, sha256)

    def running(self) -> Any:
        """Around a run."""
        return self.torch.inference_mode()

    def timed(self, programs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Programs whose calls end when their work has."""
        if self.device.type == "cpu":
            return programs
        synchronize, device = self.torch.cuda.synchronize, self.device

        def waiting(run: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
            def call(values: list[Any]) -> Any:
                found = run(values)
                synchronize(device)
                return found

            return call

        return {name: waiting(run) for name, run in programs.items()}

    def images(self, value: Any, wanted: int) -> Any:
        """The first images of a run's result."""
        return value[:wanted].clone()  # not an inference tensor: a caller may go on with it as with any other

    def joined(self, parts: Sequence[Any]) -> Any:
        """Images of several runs as one tensor."""
        return parts[0] if len(parts) == 1 else self.torch.cat(list(parts))

    def check(self, requires: Mapping[str, Any]) -> None:
        """Compare what the programs were built for with this machine.

        Raises:
            ArtefactError: they differ; the message names both and what to do.
        """
        here = facts(self.device.type)
        for name, wanted in requires.items():
            if name == "cpu":
                missing = sorted(set(wanted) - set(here["cpu"]))
                if missing:
                    raise ArtefactError(
                        message(
                            "this CPU",
                            f"have {', '.join(missing)}, which the programs were built for",
                            "one without",
                            "export the artefact on a machine like this one, or use its onnx format",
                        )
                    )
            elif here.get(name) != wanted:
                raise ArtefactError(
                    message(
                        f"this machine's {name}",
                        f"be {wanted}, which the programs were built for",
                        here.get(name, "none"),
                        "install that version, export the artefact again here, or use its onnx format",
                    )
                )


VECTOR = ("sse4", "avx", "fma", "f16c", "bmi", "amx", "neon", "asimd", "sve", "bf16", "i8mm")
"""Beginnings of CPU features that compiled code uses."""


def cpu_features() -> list[str]:
    """Vector features of this CPU, sorted; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    words = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return sorted({word for word in words if word.startswith(VECTOR)})


def facts(device: str) -> dict[str, Any]:
    """What compiled programs depend on."""
    import torch

    from sparvar.kernels import sources_digest

    found: dict[str, Any] = {
        "torch": torch.__version__.partition("+")[0],
        "platform": f"{sys.platform}-{platform.machine()}",
        "kernels": sources_digest(),
    }
    if device == "cpu":
        found["cpu"] = cpu_features()
    elif torch.cuda.is_available():
        found["gpu"] = "sm_{}{}".format(*torch.cuda.get_device_capability())
        found["cuda"] = torch.version.cuda
    return found
