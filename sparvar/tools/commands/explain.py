"""`sparvar explain`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

import sparvar
from sparvar.errors import OptionError, PlanError, message
from sparvar.tools.console import handled, notes, print_json, results
from sparvar.tools.options import Inner, Json, PlanName, Weights, choose_inner
from sparvar.zoo import landscape

LANDSCAPE = "zoo:landscape"

Generate = Callable[[nn.Module], object]


def _landscape_generation(model: Any) -> object:
    return model.generate(labels=[0], seed=0, cfg=2.0)


def load_model(source: str, weights: Path | None = None) -> tuple[nn.Module, Generate | None]:
    """A model and what runs one generation of it, from ``zoo:landscape`` or ``package.module:factory``.

    Raises:
        OptionError: the module cannot be imported, the factory is not there, or it gives no model.
    """
    if source == LANDSCAPE:
        return landscape(weights), _landscape_generation
    place, colon, name = source.partition(":")
    if not colon or not place or not name:
        must = f"be {LANDSCAPE} or package.module:factory"
        raise OptionError(message("MODEL", must, repr(source), "e.g. mypackage.models:build"))
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does, so that a file beside the user is found
    try:
        module = importlib.import_module(place)
    except ImportError as error:
        remedy = "install its package, or run in the folder that holds it"
        raise OptionError(message(f"MODEL {source}", "name a module that can be imported", error, remedy)) from error
    if not hasattr(module, name):
        public = ", ".join(entry for entry in vars(module) if not entry.startswith("_")) or "nothing"
        raise OptionError(message(f"MODEL {source}", f"name something in {place}", name, f"it has {public}"))
    factory = getattr(module, name)
    made = factory if isinstance(factory, nn.Module) or not callable(factory) else _call(source, factory)
    model, generate = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module) or not (generate is None or callable(generate)):
        must = "give a torch.nn.Module, or (module, generate) where generate(module) runs one generation"
        raise OptionError(message(f"MODEL {source}", must, type(made).__name__))
    return model, generate


def _call(source: str, factory: Callable[[], Any]) -> Any:
    try:
        signature(factory).bind()
    except TypeError as error:
        remedy = "write a function that builds the model as you need it"
        raise OptionError(message(f"MODEL {source}", "be callable without arguments", error, remedy)) from error
    except ValueError:  # built into the interpreter, so it tells no signature
        return factory()
    return factory()


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
