"""`sparvar inspect`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from sparvar.errors import OptionError, PlanError, PlanWarning, message
from sparvar.scale_plans import Plan, diff, load_plan
from sparvar.tools.console import FAILED, handled, notes, print_json, results
from sparvar.tools.options import Json
from sparvar.tools.reports.artefact_view import facts, is_artefact, view


def _facts(plan: Plan) -> dict[str, Any]:
    return {
        "name": plan.name,
        "digest": plan.digest,
        "cost": plan.cost(),
        "planned_sites": plan.planned_sites(),
        "plan": plan.model_dump(mode="json"),
    }


def _rehash(path: Path) -> Plan:
    if not path.is_file():
        must = "be the path of a plan file"
        raise OptionError(
            message("--rehash", must, str(path), "shipped plans are not edited; save a copy and edit that")
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PlanWarning)  # the stale digest is what is being mended
        plan = Plan.load(path)
    plan.save(path)
    return plan


def _show_artefact(path: Path, json: bool, more: bool) -> None:
    if more:
        must = "be left out for an artefact"
        raise OptionError(message("--diff, --check, --rehash", must, str(path), "see sparvar verify"))
    manifest, picture = view(path)
    if json:
        print_json(facts(manifest))
    else:
        results().print(picture)


@handled
def inspect(
    plan: Annotated[
        str, typer.Argument(metavar="PLAN", help="A plan file, the name of a shipped plan, or an artefact.")
    ],
    other: Annotated[
        str | None, typer.Option("--diff", metavar="OTHER", help="Show what changes from PLAN to OTHER.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Say whether the plan is sound, and every problem.")] = False,
    rehash: Annotated[
        bool, typer.Option("--rehash", help="Accept an edit by hand: write the file again with its new digest.")
    ] = False,
    json: Json = False,
) -> None:
    """Read a plan or an artefact: what runs at every scale and layer, what it keeps and saves, where it comes from.

    A plan is a JSON file. Edit it, check it, give it to [cyan]sparvar demo --plan[/]. With [bold]--check[/] the exit
    code is 1 when the plan contradicts itself; with [bold]--diff[/] it is 0 whether or not the plans differ.

    [dim]Examples[/]

        sparvar inspect demo-output/plan.json

        sparvar inspect mine.json --diff demo-output/plan.json

        sparvar inspect mine.json --check

        sparvar inspect landscape.sparvar
    """
    if is_artefact(Path(plan)):
        _show_artefact(Path(plan), json, other is not None or check or rehash)
        return
    if rehash:
        renewed = _rehash(Path(plan))
        notes().print(f"{plan}: digest {renewed.digest}", markup=False, soft_wrap=True)
    try:
        first = load_plan(plan)
        second = load_plan(other) if other is not None else None
    except PlanError as error:
        if json:
            print_json({"ok": False, "source": error.source, "problems": error.problems})
            raise typer.Exit(FAILED) from error
        raise
    screen = results()
    if second is not None:
        lines = list(diff(first, second).lines)
        if json:
            print_json({"from": _facts(first), "to": _facts(second), "changes": lines})
        else:
            screen.print("\n".join(lines) or "the plans are equal", markup=False, soft_wrap=True)
    elif json:
        print_json({"ok": True, "problems": [], **_facts(first)})
    elif check:
        screen.print(f"{first.name}: no contradictions, digest {first.digest}", markup=False, soft_wrap=True)
    elif not rehash:
        screen.print(str(first), markup=False, soft_wrap=True)
