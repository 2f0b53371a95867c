"""The command as a user runs it, on a small model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sparvar.calibrate import Effort
from sparvar.calibrate.candidates.base_plan import base_plan
from sparvar.calibrate.journal import Journal
from sparvar.errors import OptionError, OutputError
from sparvar.scale_plans import Plan, held_share
from sparvar.tools.cli import app
from tests.calibrate import factories

ROOT = Path(__file__).resolve().parents[2]
LABELS = b"mountain\n3\n\nsea\n"


def arguments_of(folder: Path, *arguments: str, model: str = "tiny", labels: bytes = LABELS) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.txt").write_bytes(labels)
    named = [f"tests.calibrate.factories:{model}", "--prompts", str(folder / "labels.txt")]
    # Leaving out tokens and rows takes as long again: one test does it.
    columns = [] if "--reduce" in arguments else ["--columns-only"]
    fixed = ["--out", str(folder / "plan.json"), "--inner", "eager", "--images", "2"]
    return ["calibrate", *named, *fixed, *columns, *arguments]


def run(folder: Path, *arguments: str, **how: Any) -> Result:
    """The command in this process, which compiles its graphs once for all tests."""
    environment = {"SPARVAR_CACHE_DIR": str(folder / "cache"), "COLUMNS": "200"}
    return CliRunner().invoke(app, arguments_of(folder, *arguments, **how), env=environment)


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "calibration.json").read_text())
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished calibration with a budget that sparse plans of the small model meet."""
    folder = tmp_path_factory.mktemp("calibration")
    command = [sys.executable, "-m", "sparvar.tools", *arguments_of(folder, "--min-psnr", "8")]
    environment = {**os.environ, "SPARVAR_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "measured, held out" in done.stdout
    (folder / "first.json").write_bytes((folder / "plan.json").read_bytes())  # others write their own over it
    return folder


def test_writes_a_plan_and_the_reasons(folder: Path) -> None:
    plan, found = Plan.load(folder / "plan.json", strict_digest=True), report(folder)
    assert plan.provenance.calibrated
    assert found["digest"] == plan.digest
    assert found["held_out"]["psnr_db_mean"] >= 8
    assert plan.measured["psnr_db"] == pytest.approx(found["held_out"]["psnr_db_mean"], abs=1e-3)
    sites = found["sites"]
    assert {(site["scale"], site["layer"]) for site in sites} == {(k, layer) for k in range(2, 7) for layer in range(3)}
    for site in sites:
        # Spans grow, and so do windows at one distance; all windows of a scale hold at most everything.
        assert site["sink_mass"] == sorted(site["sink_mass"])
        assert all(0 <= share <= 1.0001 for share in [*site["recall"].values(), *site["kept"].values()])
        for shares in site["window_mass"].values():
            assert list(shares.values()) == sorted(shares.values())
        assert sum(max(shares.values()) for shares in site["window_mass"].values()) <= 1.0001
    last = next(site for site in sites if site["scale"] == 6)
    assert set(last["window_mass"]) == {str(distance) for distance in range(6)}
    assert len(found["screened"]) == 3 * len({name.split("+")[1] for name in found["screened"]})  # three maps of each
    assert set(found["pruning"]["rho"]) == {"2", "3", "4", "5", "6"}
    assert len(found["pruning"]["ratio"]) == 3
    text = (folder / "calibration.html").read_text()
    # Curves of columns belong to cs4a layers, the map and the graph to sparse sites: a plan may have none of them.
    assert 6 <= text.count("data:image/png;base64,") <= 9
    assert found["all_dense"] or found["decisions"]["nodes"]
    assert found["decisions"]["problems"] == []


@pytest.mark.search
def test_tokens_and_rows_are_left_out_where_the_budget_allows(folder: Path) -> None:
    """With the journal of the run before: what it measured is not measured again."""
    done = run(folder, "--min-psnr", "8", "--reduce", "--resume")
    assert done.exit_code == 0, done.output
    plan, found = Plan.load(folder / "plan.json", strict_digest=True), report(folder)
    tried = found["left_out"]["reductions"]
    assert any(each["conditional_from"] for each in tried) and any(each["pruned"] for each in tried)
    assert all(each["mse"] > 0 and each["saves_seconds"] > 0 for each in tried)
    # so little quality is asked for that the cheapest plan draws fewer rows and tokens
    assert plan.guidance is not None and plan.pruning is not None
    assert found["held_out"]["psnr_db_mean"] >= 8
    # What was expected of the held-out images: what the checks had, and what their own detail makes of it.
    expected = found["checked"]["psnr_db_mean"] + found["predicted"]["detail_gain_db"]
    assert found["predicted"]["psnr_db"] == pytest.approx(expected) and found["predicted"]["detail_gain_db"] != 0
    assert found["predicted"]["seconds"] == found["checked"]["seconds_median"]
    (folder / "plan.json").write_bytes((folder / "first.json").read_bytes())


@pytest.mark.search
def test_a_slow_machine_gets_a_quick_search_that_measures_less_and_holds_the_budget(folder: Path) -> None:
    assert report(folder)["effort"]["fine"]  # a small model is drawn in no time
    [kept] = (folder / "cache").glob("pace-*.json")
    assert 0 < json.loads(kept.read_text())["dense_seconds"] < 600 / 76
    slow = folder / "slow"
    slow.mkdir()
    (slow / kept.name).write_text('{"dense_seconds": 20.4}')
    quick = folder / "quick"  # its own journal: nothing is known that it would not measure
    environment = {"SPARVAR_CACHE_DIR": str(slow), "COLUMNS": "200"}
    done = CliRunner().invoke(app, arguments_of(quick, "--min-psnr", "8", "--reduce"), env=environment)
    assert done.exit_code == 0, done.stderr
    assert "a quick search with 2 images, 2 more held out" in done.stderr
    found = report(quick)
    assert not found["effort"]["fine"]
    assert set(found["sensitivity"]["weights"]) == {1.0}  # no layers were told apart
    tried = [each["pruned"]["keep"] for each in found["left_out"]["reductions"] if each["pruned"]]
    assert tried and all(len(keep) == 1 for keep in tried)
    assert found["held_out"]["psnr_db_mean"] >= 8 and len(found["trials"]) <= 2
    lines = (quick / "plan.json.work" / "journal.jsonl").read_text().splitlines()
    both = (lines, (folder / "plan.json.work" / "journal.jsonl").read_text().splitlines())
    assert [sum('"key": "observe/' in line for line in each) for each in both] == [1, 2]
    fewer, more = (len(each["sites"][-1]["recall"]) for each in (found, report(folder)))
    assert 0 < fewer < more  # budgets
    asked = arguments_of(quick, "--min-psnr", "8", "--reduce", "--effort", "quick", "--resume")
    done = CliRunner().invoke(app, asked, env=environment)
    assert done.exit_code == 0, done.stderr
    assert report(quick)["digest"] == found["digest"]
    assert len((quick / "plan.json.work" / "journal.jsonl").read_text().splitlines()) == len(lines)


@pytest.mark.parametrize(
    ("seconds", "fine", "images"),
    [
        (0.1, True, 8),
        (7.8, True, 8),
        (8.0, False, 8),
        (12.0, False, 8),
        (15.0, False, 6),
        (20.4, False, 3),
        (90.0, False, 3),
    ],
)
def test_the_effort_fits_ten_minutes_by_what_a_dense_image_takes(seconds: float, fine: bool, images: int) -> None:
    effort = Effort.within(seconds)
    assert (effort.fine, effort.checks, effort.held_out) == (fine, images, images)


def test_a_journal_is_not_gone_on_with_by_another_compiler(folder: Path) -> None:
    done = run(folder, "--min-psnr", "8", "--resume", "--inner", "inductor")
    assert done.exit_code == 1 and "'eager' as its compiler" in done.stderr and "by --inner" in done.stderr


@pytest.mark.search
def test_scales_are_skipped_where_asked_and_the_budget_allows(folder: Path) -> None:
    done = run(folder, "--min-psnr", "7", "--reduce", "--skip-scales", "--resume")
    assert done.exit_code == 0, done.output
    plan, found = Plan.load(folder / "plan.json", strict_digest=True), report(folder)
    skipped = [each for each in found["left_out"]["reductions"] if each["skip"]]
    assert {each["skip"] for each in skipped} == {1, 2} and any(each["pruned"] for each in skipped)
    assert plan.skip is not None and found["held_out"]["psnr_db_mean"] >= 7
    assert plan.decision_scale is None or plan.decision_scale < plan.drawn
    assert "not drawn" in (folder / "calibration.html").read_text()


@pytest.mark.search
def test_a_cache_of_a_stated_size(folder: Path) -> None:
    done = run(folder, "--min-psnr", "8", "--max-kv", "0.2", "--reduce", "--resume")
    assert done.exit_code == 0, done.output
    plan, found = Plan.load(folder / "plan.json", strict_digest=True), report(folder)
    assert plan.kv is not None and held_share(plan) <= 0.2
    assert found["kv"]["plan_held_share"] == held_share(plan)
    assert {"local", "scalekv", "hack"} <= set(found["kv"]["tried"])
    assert all(each["held_share"] <= 0.2 for each in found["kv"]["tried"].values())
    assert plan.pruning is None and "cs4a" not in plan.layers
    assert found["held_out"]["psnr_db_mean"] >= 8
    assert "What the KV cache holds" in (folder / "calibration.html").read_text()


@pytest.mark.search
def test_a_cache_that_is_too_small_for_the_quality_names_the_nearest(folder: Path) -> None:
    done = run(folder, "--min-psnr", "99", "--max-kv", "0.15", "--resume")
    assert done.exit_code == 1
    text = " ".join(done.stderr.split())
    assert "allow a larger cache" in text
    assert "plan: must hold at most 15 % of the KV cache at 99 dB, got" in text
    done = run(folder, "--min-psnr", "8", "--max-kv", "0.05", "--resume")
    assert done.exit_code == 1
    assert "--max-kv: must be from 0.11, the sinks, to below" in " ".join(done.stderr.split())


@pytest.mark.search
def test_a_choice_per_image(folder: Path) -> None:
    done = run(folder, "--min-psnr", "7", "--per-image", "--reduce", "--resume")
    assert done.exit_code == 0, done.output
    plan, found = Plan.load(folder / "plan.json", strict_digest=True), report(folder)
    assert found["per_image"]["adopted"] and any(found["per_image"]["skipped"])
    assert plan.adapt is not None and plan.adapt.fingerprint == plan.model.fingerprint
    assert len(found["per_image"]["images"]) == 2
    assert found["held_out"]["psnr_db_mean"] >= 7
    # images of such quality are nowhere to be had: no image may do without a scale
    done = run(folder, "--min-psnr", "101", "--per-image", "--resume")
    assert done.exit_code == 0, done.output
    assert Plan.load(folder / "plan.json").adapt is None and not report(folder)["per_image"]["adopted"]


@pytest.mark.search
def test_the_same_seed_and_cost_table_give_the_same_plan(folder: Path) -> None:
    # In a folder of its own, so that nothing is taken from the journal.
    environment = {"SPARVAR_CACHE_DIR": str(folder / "cache"), "COLUMNS": "200"}
    again = folder / "again"
    done = CliRunner().invoke(app, arguments_of(again, "--min-psnr", "8"), env=environment)
    assert done.exit_code == 0, done.stderr
    assert report(again)["costs_cached"]
    assert Plan.load(again / "plan.json").digest == Plan.load(folder / "first.json").digest


def test_a_budget_that_no_sparse_plan_meets_gives_the_dense_plan_and_says_so(folder: Path) -> None:
    # Identical images count as 100 dB, which a sparse plan reaches on two small ones now and then: ask for more.
    done = run(folder, "--resume", "--min-psnr", "101")
    assert done.exit_code == 0, done.stderr
    assert "all dense" in done.stdout
    plan = Plan.load(folder / "plan.json")
    assert plan.planned_sites() == 0
    assert "all dense" in plan.provenance.note


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--max-seconds", "0.0001"], ["must take at most 0.0001 s, got", "the fastest plan is predicted at"]),
        (
            ["--max-seconds", "0.0001", "--min-psnr", "8"],
            ["must take at most 0.0001 s within 8 dB, got", "the fastest plan is predicted at"],
        ),
        (
            ["--max-seconds", "0.0001", "--max-error", "0.5", "--min-ssim", "0.1"],
            ["within 0.1 SSIM and 0.5 relative output error"],
        ),
    ],
)
def test_seconds_that_no_plan_reaches_name_the_nearest(folder: Path, arguments: list[str], texts: list[str]) -> None:
    done = run(folder, "--resume", *arguments)
    assert done.exit_code == 1
    assert all(text in " ".join(done.stderr.split()) for text in texts), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_budget_of_ssim(folder: Path) -> None:
    done = run(folder, "--resume", "--min-ssim", "0.2")
    assert done.exit_code == 0, done.stderr
    assert report(folder)["held_out"]["ssim_mean"] >= 0.2
    assert Plan.load(folder / "plan.json").measured["ssim"] >= 0.2


@pytest.mark.slow
def test_a_budget_of_output_error_bars_candidates_and_is_measured(folder: Path) -> None:
    seen = {}
    for most in ("0.02", "0.6"):
        done = run(folder, "--resume", "--max-error", most)
        assert done.exit_code == 0, done.stderr
        found = report(folder)
        seen[most] = found["plan"]
        if not found["all_dense"]:
            assert found["held_out"]["max_error"] <= float(most)
            assert Plan.load(folder / "plan.json").measured["max_error"] <= float(most)
    assert seen["0.02"] != seen["0.6"]


@pytest.mark.slow
def test_seconds_for_a_gpu_are_its_roofline(folder: Path) -> None:
    done = run(folder, "--resume", "--min-psnr", "8", "--target", "h100")
    assert done.exit_code == 0, done.stderr
    found = report(folder)
    assert found["target"] == "H100 SXM"
    assert found["costs"]["dense_seconds"] < 0.01  # of a model with 3 layers of width 64
    assert "seconds" not in Plan.load(folder / "plan.json").measured
    assert "nothing was run there" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_random_weights_at_a_usual_budget_stay_dense(folder: Path) -> None:
    done = run(folder, "--resume", "--min-psnr", "60")
    assert done.exit_code == 0, done.stderr
    assert "No sparse plan met the budget: the plan is all dense." in done.stdout
    assert Plan.load(folder / "plan.json").planned_sites() == 0


@pytest.mark.search
def test_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    stopped = run(tmp_path, "--min-psnr", "8", "--max-seconds-total", "1")
    assert stopped.exit_code == 1
    assert "go on with --resume" in stopped.stderr
    journal = tmp_path / "plan.json.work" / "journal.jsonl"
    before = journal.read_text()
    journal.write_text(before + '{"key": "half a li')
    done = run(tmp_path, "--min-psnr", "8", "--resume")
    assert done.exit_code == 0, done.stderr
    assert journal.read_text().startswith(before)


def lines_of(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.is_file() else 0


@pytest.mark.search
@pytest.mark.parametrize("lines", [1, 12])
def test_killed_at_any_moment_it_resumes_to_the_same_plan(folder: Path, tmp_path: Path, lines: int) -> None:
    # The cost table is the one of the finished run: seconds of another moment may give another plan.
    environment = {**os.environ, "SPARVAR_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, "-m", "sparvar.tools", *arguments_of(tmp_path, "--min-psnr", "8")]
    journal = tmp_path / "plan.json.work" / "journal.jsonl"
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and lines_of(journal) <= lines:
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it was killed"
    process.kill()
    process.wait()
    assert not (tmp_path / "plan.json").exists()
    resumed = CliRunner().invoke(
        app,
        arguments_of(tmp_path, "--min-psnr", "8", "--resume"),
        env={"SPARVAR_CACHE_DIR": str(folder / "cache"), "COLUMNS": "200"},
    )
    assert resumed.exit_code == 0, resumed.stderr
    assert Plan.load(tmp_path / "plan.json").digest == Plan.load(folder / "first.json").digest


@pytest.mark.search
@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are POSIX")
def test_a_full_disk_loses_nothing(folder: Path, tmp_path: Path) -> None:
    import resource

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    environment = {**os.environ, "SPARVAR_CACHE_DIR": str(folder / "cache"), "COLUMNS": "200"}
    command = [sys.executable, "-m", "sparvar.tools", *arguments_of(tmp_path, "--min-psnr", "8")]
    how: dict[str, Any] = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "check": False}
    failed = subprocess.run(command, preexec_fn=no_room, **how)
    assert failed.returncode == 1, failed.stderr
    text = " ".join(failed.stderr.split())
    assert "must be writable" in text and "make room; then go on with --resume" in text
    assert "Traceback" not in text
    assert not (tmp_path / "plan.json").exists()
    resumed = subprocess.run([*command, "--resume"], **how)
    assert resumed.returncode == 0, resumed.stderr
    assert (tmp_path / "plan.json").is_file()


@pytest.mark.parametrize(
    ("model", "labels", "arguments", "text"),
    [
        ("tiny", LABELS, [], "budget: must be stated, got none; give --min-psnr"),
        ("tiny", LABELS, ["--min-psnr", "nan"], "--min-psnr: must be a finite number above 0"),
        ("tiny", LABELS, ["--min-ssim", "1.0"], "--min-ssim: must be below 1, got 1.0; sparse attention changes"),
        ("tiny", LABELS, ["--max-error", "2"], "--max-error: must be below 1, got 2.0; 2 % is 0.02"),
        ("tiny", LABELS, ["--min-psnr", "30", "--max-kv", "1.5"], "--max-kv: must be above 0 and below 1, got 1.5"),
        ("tiny", LABELS, ["--max-kv", "0.5"], "budget: must be stated, got none"),
        ("tiny", LABELS, ["--max-error", "0.1", "--max-kv", "0.5"], "--max-kv: must be asked without --max-error"),
        ("tiny", LABELS, ["--max-seconds", "1", "--per-image"], "--per-image: must be asked with --min-psnr or"),
        ("tiny", LABELS, ["--min-psnr", "30", "--skip-scales"], "--skip-scales: must be asked where calibration may"),
        ("tiny", LABELS, ["--min-psnr", "30", "--target", "TPU"], "must be one of A100 SXM 80 GB"),
        ("tiny", b"\n\n", ["--min-psnr", "30"], "must hold at least one prompt, got none"),
        ("tiny", b"sea\n\xff\n", ["--min-psnr", "30"], "line 2: must be UTF-8 text, got byte 0 that is not"),
        ("tiny", b'sea\n{"a": \n', ["--min-psnr", "30"], "line 2: must be a label or a JSON value, got broken JSON"),
        ("nosuch", LABELS, ["--min-psnr", "30"], "has no callable named nosuch"),
        ("number", LABELS, ["--min-psnr", "30"], "must be a sparvar.calibrate Subject"),
        ("broken", LABELS, ["--min-psnr", "30"], "attention of layer 1 at scale 3: must be finite, got NaN"),
    ],
)
def test_bad_input(tmp_path: Path, model: str, labels: bytes, arguments: list[str], text: str) -> None:
    done = run(tmp_path, *arguments, model=model, labels=labels)
    assert done.exit_code == 1
    assert text in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "plan.json").exists()


def test_two_calibrations_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        Journal(tmp_path / "work", {"a": 1}, resume=False),
        pytest.raises(OutputError, match="must belong to one calibration, got another one that is running"),
    ):
        Journal(tmp_path / "work", {"a": 1}, resume=True)


def test_a_journal_of_another_run_is_not_gone_on_with(tmp_path: Path) -> None:
    with Journal(tmp_path / "work", {"seed": 1}, resume=False):
        pass
    with pytest.raises(OptionError, match="got other seed; leave it out"):
        Journal(tmp_path / "work", {"seed": 2}, resume=True)


def test_images_of_another_run_are_not_used(tmp_path: Path) -> None:
    import torch

    for seed in (1, 2):
        with Journal(tmp_path / "work", {"seed": seed}, resume=False) as journal:
            assert float(journal.image("check/0", lambda seed=seed: torch.tensor(float(seed)))) == seed  # type: ignore[misc]
    with Journal(tmp_path / "work", {"seed": 2}, resume=True) as journal:
        assert float(journal.image("check/0", lambda: torch.tensor(0.0))) == 2


def test_observing_changes_nothing() -> None:
    import torch

    import sparvar
    from sparvar.calibrate.candidates.candidate import read_candidate
    from sparvar.calibrate.candidates.space import default_space
    from sparvar.calibrate.measure.observe import Observer
    from sparvar.models.subject import as_subject

    subject = as_subject(factories.tiny(), "tests:tiny")
    base = base_plan(subject)
    plain = subject.draw(subject.model, "sea", 5)
    sparvar.compile(subject.model, base, inner="eager")
    attachment = sparvar.attachment_of(subject.model)
    assert attachment is not None
    observer = Observer(base, default_space(base))
    with attachment.hooked(observer):
        assert torch.allclose(subject.draw(subject.model, "sea", 5), plain, atol=1e-5)
    sparvar.detach(subject.model)
    site = observer.sites[6, 0]
    widest, narrow = (
        sum(site["errors"][read_candidate(f"cs4a/4/relative+s1w0/{budget}/-")]) for budget in (0.45, 0.03)
    )
    assert 0 < widest < narrow
    assert not observer._sums and not observer._delta  # nothing is kept after the last scale
