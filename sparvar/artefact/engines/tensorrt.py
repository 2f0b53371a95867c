"""TensorRT engines, with torch's tensors as their memory.

Written against TensorRT 10's documented API and tried against a stand-in only: no engine was built where this was
written.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Queue
from typing import Any

from sparvar.artefact.tensors import TensorFile
from sparvar.errors import ArtefactError, message


class TensorRtEngine:
    """Loads and runs one artefact's engines.

    Args:
        device: ``cuda``, with a number where there are several.
    """

    name = "tensorrt"

    def __init__(self, device: str = "cuda") -> None:
        import tensorrt
        import torch

        self.torch, self.trt = torch, tensorrt
        self.device = torch.device(device)
        if self.device.type != "cuda" or not torch.cuda.is_available():
            must, remedy = "be an NVIDIA GPU for TensorRT", "use the artefact's onnx or aoti format"
            raise ArtefactError(message("device", must, device, remedy))
        self._runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.WARNING))

    def tensors(self, file: TensorFile, names: Sequence[str]) -> dict[str, Any]:
        """Tensors of a file, copied once to the device."""
        return {name: file.torch(name).to(self.device) for name in names}

    def buffer(self, shape: Sequence[int], dtype: str) -> Any:
        """Memory that programs write into."""
        return self.torch.empty(tuple(shape), dtype=getattr(self.torch, dtype), device=self.device)

    def tensor(self, value: Any, dtype: str) -> Any:
        """A value on the engine's device."""
        return self.torch.as_tensor(value, dtype=getattr(self.torch, dtype)).to(self.device)

    def program(self, path: Path, runners: int) -> Any:
        """An engine with one execution context for each of ``runners`` calls at once.

        Raises:
            ArtefactError: TensorRT cannot read it.
        """
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            must, remedy = "be an engine that TensorRT can read", "export it again on a machine like this one"
            raise ArtefactError(message(f"program {path.name}", must, "another version's or GPU's", remedy))
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        mode = self.trt.TensorIOMode.INPUT
        inputs = [name for name in names if engine.get_tensor_mode(name) == mode]
        outputs = [name for name in names if engine.get_tensor_mode(name) != mode]
        dtypes = {name: self._dtype(engine.get_tensor_dtype(name)) for name in names}
        contexts: Queue[Any] = Queue()
        for _ in range(runners):
            contexts.put(engine.create_execution_context())

        def run(values: list[Any]) -> Sequence[Any]:
            given = {
                name: value.to(dtypes[name]).contiguous() for name, value in zip(inputs, values, strict=True)
            }  # held until the work is queued; torch gives memory out again in the stream's order
            found = {
                name: self.torch.empty(tuple(engine.get_tensor_shape(name)), dtype=dtypes[name], device=self.device)
                for name in outputs
            }
            context = contexts.get()
            try:
                for name, tensor in (given | found).items():
                    context.set_tensor_address(name, tensor.data_ptr())
                done = context.execute_async_v3(self.torch.cuda.current_stream(self.device).cuda_stream)
            finally:
                contexts.put(context)
            if not done:
                raise ArtefactError(message(f"program {path.name}", "run", "a refusal of TensorRT, see its log"))
            return list(found.values())

        return run

    def _dtype(self, dtype: Any) -> Any:
        trt, torch = self.trt, self.torch
        return {
            trt.float32: torch.float32,
            trt.float16: torch.float16,
            trt.bfloat16: torch.bfloat16,
            trt.int32: torch.int32,
            trt.int64: torch.int64,
            trt.bool: torch.bool,
        }[dtype]

    def load_native(self, native: Mapping[Path, str]) -> None:
        """There is no native code beside the engines."""

    def running(self) -> Any:
        """Around a run."""
        return self.torch.inference_mode()

    def images(self, value: Any, wanted: int) -> Any:
        """The first images of a run's result."""
        return value[:wanted].clone()

    def joined(self, parts: Sequence[Any]) -> Any:
        """Images of several runs as one tensor."""
        return parts[0] if len(parts) == 1 else self.torch.cat(list(parts))

    def check(self, requires: Mapping[str, Any]) -> None:
        """Compare what the engines were built for with this machine.

        Raises:
            ArtefactError: they differ.
        """
        here = facts()
        for name, wanted in requires.items():
            if here.get(name) != wanted:
                remedy = "install that version, export the artefact again here, or use its onnx format"
                must = f"be {wanted}, which the engines were built for"
                raise ArtefactError(message(f"this machine's {name}", must, here.get(name, "none"), remedy))


def facts() -> dict[str, str]:
    """What engines depend on."""
    import tensorrt
    import torch

    return {
        "tensorrt": str(tensorrt.__version__),
        "platform": f"{sys.platform}-{platform.machine()}",
        "gpu": "sm_{}{}".format(*torch.cuda.get_device_capability()),
    }
