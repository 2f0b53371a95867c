"""Saving, loading and finding plan files."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest

from sparvar.errors import OutputError, PlanError
from sparvar.scale_plans import Plan, find_plan, load_plan, shipped_plans
from sparvar.scale_plans.shipped import catalogue
from tests.scale_plans.strategies import infinity_plan

FINGERPRINT = "sha256:" + "ab" * 32


def no_space(*_: Any, **__: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_save_and_load(tmp_path: Path) -> None:
    plan = infinity_plan()
    path = tmp_path / "plan.json"
    plan.save(path)
    assert Plan.load(path, strict_digest=True) == plan
    assert path.read_text() == plan.dumps()
    plan.replace(prefix=3).save(str(path))
    assert Plan.load(str(path)).prefix == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "plan.json"
    infinity_plan().save(path)
    before = path.read_bytes()
    target = "builtins.open" if call == "open" else f"os.{call}"
    with monkeypatch.context() as patch:
        patch.setattr(target, no_space)
        with pytest.raises(
            OutputError, match=r"No space left on device; .*what was there before is untouched"
        ) as caught:
            infinity_plan(prefix=5).save(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_fills_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    real_open = open
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", lambda *_, **__: real_open("/dev/full", "wb"))
        with pytest.raises(OutputError, match="No space left"):
            infinity_plan().save(path)
    assert not list(tmp_path.iterdir())


def test_an_interrupt_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        infinity_plan().save(tmp_path / "plan.json")
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "plan.json"
    with pytest.raises(OutputError, match="must be writable, got No such file or directory"):
        infinity_plan().save(path)
    with pytest.raises(PlanError, match="file: must be readable, got No such file or directory"):
        Plan.load(path)


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "plan.json"
    link.symlink_to(tmp_path / "real" / "plan.json")
    infinity_plan().save(link)
    assert link.is_symlink()
    assert Plan.load(tmp_path / "real" / "plan.json") == infinity_plan()


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(b'{"name": "\xff"}')
    with pytest.raises(PlanError, match="must be UTF-8 text, got byte 10 that is not"):
        Plan.load(path)
    path.write_bytes(b"\xef\xbb\xbf" + infinity_plan().dumps().encode())
    assert Plan.load(path) == infinity_plan()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the shipped plans."""
    monkeypatch.setattr(catalogue, "_FOLDER", tmp_path)
    return tmp_path


def test_no_shipped_plans(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (folder, folder / "absent"):
        monkeypatch.setattr(catalogue, "_FOLDER", place)
        assert shipped_plans() == {}
        assert find_plan(FINGERPRINT) is None
        with pytest.raises(PlanError, match=r"a file or one of the shipped plans \(var-d16, .*got landscape"):
            load_plan("landscape")


def test_shipped_plans_are_found(folder: Path) -> None:
    plan = infinity_plan()
    fitted = plan.replace(model={**plan.model.model_dump(), "fingerprint": FINGERPRINT})
    fitted.save(folder / "landscape.json")
    plan.save(folder / "any.json")
    assert list(shipped_plans()) == ["any", "landscape"]
    assert find_plan(FINGERPRINT) == fitted
    assert find_plan("") is None
    assert load_plan("landscape") == load_plan(fitted) == load_plan(folder / "landscape.json") == fitted
    with pytest.raises(PlanError, match="did you mean 'landscape'"):
        load_plan("landscap")
    (folder / "any.json").write_text(plan.dumps().replace('"prefix": 0', '"prefix": 9'))
    with pytest.raises(PlanError, match="shipped plan 'any': digest: must match"):
        shipped_plans()


def test_load_plan_refuses_a_contradictory_plan() -> None:
    with pytest.raises(PlanError, match="prefix"):
        load_plan(infinity_plan().model_copy(update={"prefix": -1}))


def test_what_ships_loads() -> None:
    for name, plan in shipped_plans().items():
        assert plan.check() == [], name
        assert load_plan(name) == plan
