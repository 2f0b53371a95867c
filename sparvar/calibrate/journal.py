"""Measurements on disk as they are made, so that a run that was killed goes on where it stopped."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from sparvar.errors import OptionError, OutputError, message
from sparvar.files import locked, write_whole


class Journal:
    """A folder with one JSON line per measurement, and images; locked while it is open.

    ``header`` names everything that the measurements depend on: a journal with another header is not gone on with.
    """

    def __init__(self, folder: Path, header: dict[str, Any], resume: bool) -> None:
        """Open or begin the journal.

        Raises:
            OutputError: the folder cannot be written, or another run holds it.
            OptionError: ``resume`` where the journal was made with other settings.
        """
        self.folder, self._path = folder, folder / "journal.jsonl"
        self._known: dict[str, Any] = {}
        must = "belong to one calibration"
        held = OutputError(message(str(folder), must, "another one that is running", "name another --out"))
        with contextlib.ExitStack() as lock:
            lock.enter_context(locked(folder / "lock", held))
            self._begin(json.loads(json.dumps(header)), resume)
            self._lock = lock.pop_all()  # held until the journal is closed

    def _begin(self, header: dict[str, Any], resume: bool) -> None:
        lines = self._path.read_text(encoding="utf-8").split("\n") if resume and self._path.is_file() else []
        if lines and lines[0]:
            stored = json.loads(lines[0])
            if stored != header:
                changed = ", ".join(sorted(name for name in {*stored, *header} if stored.get(name) != header.get(name)))
                raise OptionError(
                    message("--resume", "go on with the settings it began with", f"other {changed}", "leave it out")
                )
            for line in lines[1:]:
                try:
                    entry = json.loads(line)
                except ValueError:
                    break  # the line that was being written when the run was killed
                self._known[entry["key"]] = entry["value"]
        else:
            for image in self.folder.glob("*.safetensors"):
                image.unlink()  # of a run with other settings
        # Written anew, so that half a line at the end is gone.
        entries = [{"key": key, "value": value} for key, value in self._known.items()]
        text = "".join(json.dumps(entry) + "\n" for entry in [header, *entries])
        write_whole(self._path, text.encode())

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        """The value of a measurement, made now if it is not known. JSON values only; raises `OutputError`."""
        if key not in self._known:
            value = measure()
            try:
                with open(self._path, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": key, "value": value}) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                remedy = "make room; then go on with --resume"
                raise OutputError(
                    message(str(self._path), "be writable", error.strerror or str(error), remedy)
                ) from error
            self._known[key] = json.loads(json.dumps(value))
        return self._known[key]

    def image(self, key: str, draw: Callable[[], torch.Tensor]) -> torch.Tensor:
        """An image, drawn now if it is not kept. Raises `OutputError`."""
        path = self.folder / f"{key.replace('/', '-')}.safetensors"
        if path.is_file():
            try:
                return load_file(path)["image"]
            except (SafetensorError, KeyError):
                path.unlink()  # damaged: it is only a copy
        image = draw().float().cpu().contiguous()
        write_whole(path, save({"image": image}))
        return image

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()
