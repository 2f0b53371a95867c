"""`sparvar explain`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

import sparvar
from sparvar.errors import OptionError, PlanError, message
from sparvar.models.resolve import from_factory
from sparvar.models.subject import Subject
from sparvar.tools.console import handled, notes, print_json, results
from sparvar.tools.options import Inner, Json, PlanName, Weights, choose_inner
from sparvar.zoo import landscape

LANDSCAPE = "zoo:landscape"

Generate = Callable[[nn.Module], object]


def _landscape_generation(model: Any) -> object:
    return model.generate(labels=[0], seed=0, cfg=2.0)


def load_model(source: str, weights: Path | None = None) -> tuple[nn.Module, Generate | None]:
    """A model and, where its factory gives it, what runs one generation of it; see `from_factory`.

    Raises:
        OptionError: there is no such factory, or it gives no model.
    """
    if source == LANDSCAPE:
        return landscape(weights), _landscape_generation
    made = from_factory(source)
    if isinstance(made, Subject):
        made = made.model
    model, generate = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module) or not (generate is None or callable(generate)):
        must = "give a torch.nn.Module, or (module, generate) where generate(module) runs one generation"
        raise OptionError(message(f"MODEL {source}", must, type(made).__name__))
    return model, generate


@handled
def explain(
    model: Annotated[
        str, typer.Argument(metavar="[MODEL]", help=f"{LANDSCAPE}, or package.module:factory.", show_default=True)
    ] = LANDSCAPE,
    plan: PlanName = "auto",
    run: Annotated[
        bool, typer.Option("--run", help="Generate once, so that the graphs and what was rewritten in them are known.")
    ] = False,
    inner: Annotated[Inner, typer.Option(help="What compiles the graphs of --run.")] = Inner.eager,
    weights: Weights = None,
    json: Json = False,
) -> None:
    """Say which self-attentions of a model sparvar takes, what runs there, and why the others are left.

    The model is only read; with [bold]--run[/] it generates once, and every compiled graph is listed with its
    rewrites. A factory is a function without arguments that returns the model, or (model, generate) where
    generate(model) runs one generation.

    [dim]Examples[/]

        sparvar explain --run

        sparvar explain mypackage.models:build --plan mine.json
    """
    network, generate = load_model(model, weights)
    attached = True
    try:
        sparvar.compile(network, plan=plan, inner=choose_inner(inner))
    except PlanError as error:
        if plan != "auto" or run:
            raise
        attached = False
        notes().print(f"No plan is attached. {error}", markup=False, soft_wrap=True)
    if run and generate is None:
        must = "return (model, generate) for --run"
        raise OptionError(message(f"MODEL {model}", must, "a model alone", "generate(model) must run one generation"))
    found = sparvar.explain(network, generate if run else None)
    if json:
        print_json(found.as_dict())
        return
    screen = results()
    screen.print(str(found), markup=False, soft_wrap=True)
    if attached and not run:
        notes().print("Graphs are made by the first generation: add --run to see them.")
