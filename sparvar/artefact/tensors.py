"""Safetensors files, mapped into memory and read without the safetensors package.

The format is documented at https://huggingface.co/docs/safetensors: eight bytes with the length of a JSON header, the
header, and the tensors' bytes without gaps.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sparvar.artefact.manifest.dtypes import DTYPES
from sparvar.artefact.manifest.fields import Field, parse
from sparvar.artefact.manifest.reading import read_shape
from sparvar.artefact.manifest.schema import TensorSpec
from sparvar.errors import ArtefactError, message

if TYPE_CHECKING:
    import numpy as np
    import torch

NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "I64": "int64",
    "U64": "uint64",
    "F64": "float64",
}
LARGEST_HEADER = 100_000_000
"""Bytes, as in the safetensors package."""
AGAIN = "the file is damaged: get the artefact again"


@dataclass(frozen=True)
class _Entry:
    spec: TensorSpec
    start: int  # byte in the file
    end: int


class TensorFile:
    """An open safetensors file. Tensors are views of the mapped file: nothing is read before it is used.

    Attributes:
        path: of the file.
        names: of its tensors, in the order in which they lie in the file.
        metadata: text by name, from the header.
    """

    def __init__(self, path: Path | str) -> None:
        """Read and check the header. Raises `ArtefactError`."""
        self.path = Path(path)
        where = str(self.path)
        try:
            with open(self.path, "rb") as file:
                self._size = os.fstat(file.fileno()).st_size
                head = file.read(8)
                length = int.from_bytes(head, "little")
                if len(head) < 8 or length > min(LARGEST_HEADER, self._size - 8):
                    got = f"{self._size} bytes" if len(head) < 8 else f"{length} in a file of {self._size} bytes"
                    raise ArtefactError(message(where, "begin with the length of its header", got, AGAIN))
                header = file.read(length)
        except OSError as error:
            raise ArtefactError(message(where, "be readable", error.strerror or str(error))) from error
        root = parse(header, f"{where}: header")
        found = root.entries()
        self.metadata = {}
        if "__metadata__" in found:
            for name, text in found.pop("__metadata__").entries().items():
                if not isinstance(text.value, str):
                    text.fail("be text")
                self.metadata[name] = text.value
        entries = {name: _entry(field, 8 + length) for name, field in found.items()}
        self._entries = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)))
        self._check_cover(where, 8 + length)
        self.names = tuple(self._entries)
        self._mapped: torch.Tensor | None = None
        self._bytes: np.memmap[Any, np.dtype[np.uint8]] | None = None

    def _check_cover(self, where: str, begin: int) -> None:
        """Tensors must cover what follows the header: no overlap, no gap, nothing after the last."""
        last, end = "the header", begin
        for name, entry in self._entries.items():
            if entry.start != end:
                what = "into" if entry.start < end else "after a gap behind"
                got = f"one that begins {what} {last} (byte {entry.start} instead of {end})"
                raise ArtefactError(message(f"{where}: {name!r}", "follow the tensor before it", got, AGAIN))
            last, end = repr(name), entry.end
        if end != self._size:
            raise ArtefactError(message(where, f"have {end} bytes, as its header says", str(self._size), AGAIN))

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            some = ", ".join(self.names[:5]) + (", ..." if len(self.names) > 5 else "")
            raise ArtefactError(message(str(self.path), f"have a tensor {name!r}", f"only {some or 'none'}"))
        return self._entries[name]

    def spec(self, name: str) -> TensorSpec:
        """Dtype and shape. Raises `ArtefactError` where there is no such tensor."""
        return self._entry(name).spec

    def span(self, name: str) -> tuple[int, int]:
        """Offset in the file and length of a tensor's bytes. Raises `ArtefactError` where there is no such tensor."""
        entry = self._entry(name)
        return entry.start, entry.end - entry.start

    def torch(self, name: str) -> torch.Tensor:
        """The tensor, on the CPU, as a view of the file. Writing to it changes a private copy, never the file.

        All tensors of the file share one storage. Raises `ArtefactError` where there is no such tensor.
        """
        import torch

        entry = self._entry(name)
        dtype = getattr(torch, entry.spec.dtype)
        if entry.start == entry.end:
            return torch.empty(entry.spec.shape, dtype=dtype)
        if self._mapped is None:
            storage = torch.UntypedStorage.from_file(str(self.path), shared=False, nbytes=self._size)
            self._mapped = torch.empty(0, dtype=torch.uint8).set_(cast("torch.UntypedStorage", storage))
        return self._mapped[entry.start : entry.end].view(dtype).view(entry.spec.shape)

    def numpy(self, name: str) -> np.ndarray[Any, np.dtype[Any]]:
        """The tensor as a read-only view of the file.

        Raises `ArtefactError` where there is no such tensor, or its dtype is one that NumPy does not have.
        """
        import numpy as np

        entry = self._entry(name)
        if entry.spec.dtype == "bfloat16" or entry.spec.dtype.startswith("float8"):
            must, remedy = "have a dtype of NumPy", "read it with torch"
            raise ArtefactError(message(f"{self.path}: {name!r}", must, entry.spec.dtype, remedy))
        dtype = np.dtype(entry.spec.dtype)
        if entry.start == entry.end:
            return np.empty(entry.spec.shape, dtype)
        if self._bytes is None:
            self._bytes = np.memmap(self.path, mode="r")
        return self._bytes[entry.start : entry.end].view(dtype).reshape(entry.spec.shape)


def _entry(field: Field, begin: int) -> _Entry:
    at = field.object(("dtype", "shape", "data_offsets"))
    dtype = NAMES[at["dtype"].choice(NAMES)]
    shape = read_shape(at["shape"])
    offsets = at["data_offsets"].items()
    if len(offsets) != 2:
        at["data_offsets"].fail("be [begin, end]", f"{len(offsets)} numbers")
    start, end = (begin + offset.integer() for offset in offsets)
    size = math.prod(shape) * DTYPES[dtype]
    if end - start != size:
        at["data_offsets"].fail(f"span the {size} bytes of {dtype} {list(shape)}", str(end - start), AGAIN)
    if start % DTYPES[dtype] and size:
        at["data_offsets"].fail(f"begin at a multiple of {DTYPES[dtype]} bytes in the file", f"byte {start}")
    return _Entry(TensorSpec(dtype, shape), start, end)
