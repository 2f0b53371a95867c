"""`sparvar verify`."""

from __future__ import annotations

import dataclasses

import typer

import sparvar.artefact
from sparvar.artefact import Report
from sparvar.tools.console import FAILED, fail, handled, print_json, results, show_table
from sparvar.tools.options import ArtefactPath, Device, FormatName, Json, Trust


@handled
def verify(
    artefact: ArtefactPath,
    format: FormatName = None,
    device: Device = None,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Check an artefact: every file against its checksum, the golden image against what its programs draw here.

    Prints the time of every program in a generation. The exit code is 1 where a file differs, a program does not run
    here, the golden image comes out different, or a generation takes more memory than stated.

    [dim]Examples[/]

        sparvar verify landscape

        sparvar verify landscape.sparvar --format onnx --json
    """
    report = sparvar.artefact.verify(artefact, format=format, device=device, trust=trust)
    if json:
        print_json({"ok": report.ok, "problems": report.problems, **dataclasses.asdict(report)})
        raise typer.Exit(0 if report.ok else FAILED)
    _show(report)
    if not report.ok:
        fail(f"{artefact}: {'; '.join(report.problems)}")


def _show(report: Report) -> None:
    total = sum(each.seconds for each in report.programs.values())
    rows = [
        (
            name,
            str(each.runs),
            f"{1e3 * each.seconds:.1f}",
            f"{1e3 * each.seconds / each.runs:.2f}",
            f"{each.seconds / total:.0%}",
        )
        for name, each in report.programs.items()
    ]
    screen = results()
    columns = ("program", ">runs", ">ms", ">ms each", ">share")
    screen.print(show_table(f"Programs of one generation ({report.format})", columns, rows))
    quality = "equal to the recorded one" if report.psnr_db == float("inf") else f"{report.psnr_db:.1f} dB"
    screen.print(
        f"{report.files} files, {report.bytes / 2**20:.1f} MiB, match their checksums; golden image {quality}"
        f" (asked {report.least_db:g} dB{_own(report)}){_memory(report)}; loaded in {report.load_seconds:.2f} s,"
        f" drawn in {report.seconds:.2f} s",
        markup=False,
        soft_wrap=True,
    )


def _own(report: Report) -> str:
    if report.model_psnr_db is None:
        return ""
    return f"; it is the programs' own, {report.model_psnr_db:.1f} dB of the model's, as sampled bits flip"


def _memory(report: Report) -> str:
    if not report.workspace:
        return ""
    measured, stated = (f"{size / 2**20:.1f} MiB" for size in (report.workspace, report.stated_workspace))
    seen = f", resident {report.resident / 2**20:.1f} MiB" if report.resident else ""
    return f"; {measured} beside weights and buffers (stated {stated}{seen})"
