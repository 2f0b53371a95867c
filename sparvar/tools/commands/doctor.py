"""`sparvar doctor`."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Literal

import torch
import typer
from rich.markup import escape
from rich.table import Table

from sparvar import env, kernels
from sparvar.errors import PlanError, SparvarError, message
from sparvar.evaluate.machine import PACKAGES, compiler, machine, memory_total, version_of
from sparvar.private_files import code_folder, not_private
from sparvar.scale_plans import shipped_plans
from sparvar.tools.console import FAILED, handled, print_json, results, show_table
from sparvar.tools.options import Json
from sparvar.zoo import LandscapeWeightsError, landscape

State = Literal["ok", "note", "broken"]


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, how it is, what was found, what to do."""

    subject: str
    state: State
    found: str
    remedy: str = ""


def _python_and_torch() -> list[Finding]:
    facts = machine()
    found = [
        Finding("python", "ok", facts["python"]),
        Finding("sparvar", "ok", facts["sparvar"]),
        Finding("torch", "ok", torch.__version__),
    ]
    for name in PACKAGES[1:]:
        version = version_of(name)
        if version is not None:
            found.append(Finding(name, "ok", version))
        elif name == "triton":
            found.append(Finding(name, "note", "not installed", "only kernels for GPUs need it"))
        else:
            found.append(Finding(name, "note", "not installed", "pip install 'sparvar[demo]'"))
    return found


def _hardware() -> list[Finding]:
    facts = machine()
    total = memory_total()
    size = f", {total / 2**30:.0f} GiB" if total else ""
    found = [
        Finding("cpu", "ok", f"{facts['cpu']}, {facts['cores']} cores, {facts['cpu_capability']}{size}"),
        Finding("threads", "ok", f"{facts['threads']} in torch"),
    ]
    gpus = facts["gpus"]
    found.append(Finding("gpu", "ok" if gpus else "note", ", ".join(gpus) or "none that torch sees; the CPU is used"))
    return found


def _compiler() -> Finding:
    path = compiler()
    if path is not None:
        return Finding("C++ compiler", "ok", path)
    return Finding(
        "C++ compiler",
        "note",
        f"none of {', '.join(env.compilers())}",
        "install g++ or clang++: without it all is slower",
    )


def _kernels() -> list[Finding]:
    try:
        status = kernels.native_status()
    except SparvarError as error:
        return [Finding("CPU kernels, native", "broken", str(error))]
    if status.usable:
        native = Finding("CPU kernels, native", "ok", f"{status.isa}, built with {status.compiler}: {status.library}")
    else:
        asked = env.cpu_kernels() == "native"
        native = Finding("CPU kernels, native", "broken" if asked else "note", f"not usable: {status.reason}")
    portable = "in use" if status.implementation == "portable" else "usable, not in use"
    notes = [Finding("CPU kernels, cache", "note", each) for each in status.notes]
    return [native, *notes, Finding("CPU kernels, portable", "ok", f"{portable} (torch ops)")]


def _triton() -> list[Finding]:
    subject = "GPU kernels, Triton"
    try:
        gpus = kernels.gpu_status()
        asked = env.gpu_kernels()
    except SparvarError as error:
        return [Finding(subject, "broken", str(error))]
    if not gpus:
        cases = kernels.static_cases()
        names, targets = (list(dict.fromkeys(getattr(c, part) for c in cases)) for part in ("kernel", "target"))
        return [Finding(subject, "note", f"no GPU here; {len(names)} kernels compile for {', '.join(targets)}")]
    found = []
    for index, gpu in enumerate(gpus):
        name = f"{subject}, GPU {index}"
        if gpu.usable:
            found.append(Finding(name, "ok", f"run on {gpu.name}, {env.gpu_tune()} configurations"))
        else:
            state: State = "broken" if asked == "triton" else "note"
            found.append(Finding(name, state, f"torch ops run on {gpu.name}, many times slower: {gpu.reason}"))
    return found


def _weights() -> Finding:
    try:
        model = landscape()
    except LandscapeWeightsError as error:
        return Finding("weights", "broken", str(error))
    count = sum(parameter.numel() for parameter in model.parameters())
    return Finding("weights", "ok", f"landscape, {count / 1e6:.1f} M parameters, checksum matches")


def _plans() -> Finding:
    try:
        plans = shipped_plans()
    except PlanError as error:
        return Finding("shipped plans", "broken", str(error), "reinstall the package")
    if not plans:
        return Finding("shipped plans", "broken", "none", "reinstall the package")
    return Finding("shipped plans", "ok", ", ".join(f"{name} ({plan.digest[:14]})" for name, plan in plans.items()))


def _cache() -> Finding:
    folder = env.cache_dir()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if existing == folder and (problem := not_private(os.stat(folder))):
        remedy = f"compiled code is kept in {code_folder().path} instead: chmod go-w it, or set SPARVAR_CACHE_DIR"
        return Finding("cache folder", "note", message(str(folder), *problem), remedy)
    if existing.is_dir() and os.access(existing, os.W_OK):
        return Finding("cache folder", "ok", str(folder) + ("" if folder.exists() else " (made when needed)"))
    remedy = "set SPARVAR_CACHE_DIR to a folder that can be written"
    return Finding("cache folder", "note", f"{folder} cannot be written", remedy)


def _entry_point() -> Finding:
    registered = [entry for entry in metadata.entry_points(group="torch_dynamo_backends") if entry.name == "sparvar"]
    if registered:
        return Finding("torch.compile backend", "ok", f'backend="sparvar" is {registered[0].value}')
    return Finding(
        "torch.compile backend",
        "note",
        'backend="sparvar" is not registered',
        "pip install the package (pip install -e . in a clone); sparvar.compile(model) works without",
    )


def examine() -> list[Finding]:
    """Every finding, in the order in which they are shown."""
    return [
        *_python_and_torch(),
        *_hardware(),
        _compiler(),
        *_kernels(),
        *_triton(),
        _weights(),
        _plans(),
        _cache(),
        _entry_point(),
    ]


def variables() -> dict[str, dict[str, str]]:
    """The environment variables with their values, defaults and meanings."""
    return {
        name: {"value": env.current(name), "default": default, "meaning": meaning}
        for name, (default, meaning) in env.VARIABLES.items()
    }


def _tables(findings: list[Finding]) -> list[Table]:
    looks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "broken": "[bold red]broken[/]"}
    lines = []
    for finding in findings:
        found = finding.found + (f"; {finding.remedy}" if finding.remedy else "")
        lines.append((finding.subject, looks[finding.state], escape(found)))
    values = [(name, escape(facts["value"]) or "(empty)", facts["meaning"]) for name, facts in variables().items()]
    return [
        show_table("sparvar doctor", ("", "state", "found"), lines),
        show_table("Environment variables", ("name", "value", "meaning"), values),
    ]


@handled
def doctor(json: Json = False) -> None:
    """Look at everything sparvar needs: versions, processor, compiler, kernels, weights, cache.

    The exit code is 1 only when something that [cyan]sparvar demo[/] needs is broken; notes are not errors.

    [dim]Example[/]

        sparvar doctor --json | python -m json.tool
    """
    findings = examine()
    broken = [finding.subject for finding in findings if finding.state == "broken"]
    if json:
        facts: dict[str, Any] = {
            "ok": not broken,
            "broken": broken,
            "findings": [asdict(finding) for finding in findings],
            "variables": variables(),
            "machine": machine(),
        }
        print_json(facts)
    else:
        screen = results()
        for table in _tables(findings):
            screen.print(table)
        screen.print(
            f"[bold red]broken: {', '.join(broken)}[/]" if broken else "[green]everything the demo needs is here[/]"
        )
    if broken:
        raise typer.Exit(FAILED)
