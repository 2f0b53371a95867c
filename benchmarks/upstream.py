"""What sparvar does with the public models' own code: sites, graphs, cache bytes, overhead, start times.

``SPARVAR_UPSTREAM=folder python benchmarks/upstream.py --out benchmarks/results/upstream-cpu.json``

The models have random weights and are narrow; schedules, calls and caches are their own. Speeds of such models say
nothing and are not measured.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import sparvar
from sparvar.compiler import compiled_sites as site_graphs
from sparvar.evaluate.machine import machine
from sparvar.files import write_whole
from sparvar.runtime import Hook, SiteContext

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.upstream.checkouts import family_imports
from tests.upstream.support import Case, attachment, expected_sites, made_graphs, ran_sites

BUILDERS = {
    "VAR": "tests.upstream.var_models:var",
    "FlexVAR": "tests.upstream.var_models:flexvar",
    "Infinity": "tests.upstream.infinity_models:infinity",
    "hart": "tests.upstream.hart_models:hart",
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "VAR, 256": ("VAR", {}),
    "FlexVAR": ("FlexVAR", {}),
    "HART": ("hart", {}),
    "Infinity, 1M 1:1, 4 layers": ("Infinity", {"pixels": "1M", "depth": 4}),
    "Infinity, 1M 1:1, 8 layers": ("Infinity", {"pixels": "1M", "depth": 8}),
    "Infinity, 1M h/w 1.5": ("Infinity", {"pixels": "1M", "ratio": 1.5}),
    "Infinity, 0.06M w/h 1.333": ("Infinity", {"pixels": "0.06M", "ratio": 0.75}),
}


def build(family: str, **arguments: Any) -> Case:
    """The narrow model of a family."""
    module, name = BUILDERS[family].split(":")
    case: Case = getattr(importlib.import_module(module), name)(**arguments)
    return case


class CallTimes(Hook):
    """Seconds inside site wrappers and inside the compiled forwards that they run, per call."""

    def __init__(self) -> None:
        self.calls: list[float] = []
        self.compiled: list[float] = []

    def site_call(self, layer: int, proceed: Callable[[], Any]) -> Any:
        return timed(proceed, self.calls)()

    def graph_call(
        self, site: SiteContext, args: Sequence[Any], kwargs: dict[str, Any], proceed: Callable[[], Any]
    ) -> Any:
        return timed(proceed, self.compiled)()


def timed(function: Callable[..., Any], into: list[float]) -> Callable[..., Any]:
    """``function``, whose seconds go to ``into``."""

    def run(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            into.append(time.perf_counter() - started)

    return run


@contextlib.contextmanager
def timed_graphs() -> Iterator[list[float]]:
    """Seconds inside the graphs that are compiled meanwhile, per call."""
    seconds: list[float] = []
    compile_ = site_graphs.inner_compile
    site_graphs.inner_compile = lambda *args: timed(compile_(*args), seconds)
    try:
        yield seconds
    finally:
        site_graphs.inner_compile = compile_


def cache_bytes(case: Case, autocast: bool) -> tuple[int, str]:
    """Most bytes that keys and values of all layers hold, and the type of the keys."""
    most: dict[str, int] = {}
    types: set[str] = set()

    def look(name: str) -> Callable[..., None]:
        def hook(module: Any, *_: Any) -> None:
            keys, values = module.cached_k, module.cached_v
            if keys is not None:
                most[name] = max(most.get(name, 0), keys.nbytes + values.nbytes)
                types.add(str(keys.dtype))

        return hook

    handles = [case.model.get_submodule(name).register_forward_hook(look(name)) for name in case.sites]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        case.generate()
    for handle in handles:
        handle.remove()
    return sum(most.values()), "/".join(sorted(types))


class GuardTimes(Hook):
    """Seconds that Dynamo's guards of a site take, with the caches of the processor warm."""

    def __init__(self, case: Case) -> None:
        self.attachment = attachment(case.model)
        self.seconds: list[float] = []

    def graph_call(
        self, site: SiteContext, args: Sequence[Any], kwargs: dict[str, Any], proceed: Callable[[], Any]
    ) -> Any:
        wrapped, generation = self.attachment.sites[site.layer], site.generation
        bound = inspect.signature(wrapped.forward).bind(wrapped.module, *args, **kwargs)
        bound.apply_defaults()
        compiled = generation.compiled(generation.kinds[site.scale][site.layer], site.scale)
        function = compiled._torchdynamo_orig_callable  # type: ignore[attr-defined]
        for entry in torch._dynamo.eval_frame._debug_get_cache_entry_list(function.__code__):
            if entry.guard_manager.check(dict(bound.arguments)):
                started = time.perf_counter()
                for _ in range(200):
                    entry.guard_manager.check(bound.arguments)
                self.seconds.append((time.perf_counter() - started) / 200)
        return proceed()


def guard_seconds(case: Case) -> float:
    """Median seconds of a site's guards in one generation."""
    times = GuardTimes(case)
    with attachment(case.model).hooked(times):
        case.generate()
    return statistics.median(times.seconds)


class _Stop(Exception):
    """Ends a generation in the middle."""


class Again(Hook):
    """Runs one call of layer 1 over and over, with the state before it, and ends the generation."""

    def __init__(self, case: Case, scale: int, repeats: int, warm: Callable[[], object]) -> None:
        self.attachment = attachment(case.model)
        self.scale, self.repeats, self.warm = scale, repeats, warm

    def site_call(self, layer: int, proceed: Callable[[], Any]) -> Any:
        generation = self.attachment.current
        if layer != 1 or generation is None or generation.calls[1] != self.scale - 1:
            return proceed()
        module = self.attachment.sites[1].module
        caches = module.cached_k, module.cached_v
        for number in range(1 + self.repeats):
            generation.calls[:2] = [self.scale, self.scale - 1]
            module.cached_k, module.cached_v = caches
            proceed()
            if number == 0:
                self.warm()
        raise _Stop


def warm_call(scale: int = 5, repeats: int = 500) -> dict[str, float]:
    """Microseconds of one call of a site over and over, as on a GPU whose host does nothing else.

    ``wrapper_us`` is ours, ``guards_us`` Dynamo's, ``call_us`` the whole call, ``graph_us`` its graph.
    """
    with family_imports("Infinity"), timed_graphs() as graphs:
        case = build("Infinity")
        sparvar.compile(case.model, case.plan(), inner="eager", grain="attention")
        case.generate()
        guards = guard_seconds(case) * 1e6
        at, times = attachment(case.model), CallTimes()

        def clear() -> None:
            for part in (times.calls, times.compiled, graphs):
                part.clear()

        # The times are the inner hook: what is counted is the wrapper alone.
        with at.hooked(Again(case, scale, repeats, clear)), at.hooked(times), contextlib.suppress(_Stop):
            case.generate()
        call, compiled, graph = (statistics.median(part) * 1e6 for part in (times.calls, times.compiled, graphs))
    return {"wrapper_us": call - compiled, "guards_us": guards, "call_us": call, "graph_us": graph}


def every_schedule() -> dict[str, Any]:
    """All 60 schedules of Infinity in one model, plans by rule: sites rewritten and graphs, by schedule."""
    from sparvar.scale_plans import PlanSet, infinity_schedules

    found = {}
    case = build("Infinity", pixels="1M", depth=4)
    rule = PlanSet.of([case.plan()], rule=lambda schedule: case.plan(schedule=schedule))
    sparvar.compile(case.model, rule, inner="eager")
    for name, schedule in infinity_schedules().items():
        torch._dynamo.reset()
        site_graphs.site_graphs.cache_clear()
        before = len(made_graphs(case.model))
        case.generate(scales=[(1, h, w) for h, w in schedule])
        plan = attachment(case.model).last.plan
        assert plan.schedule == schedule, f"{name} ran under the plan of another schedule"
        assert ran_sites(case.model) == expected_sites(plan), f"{name}: sites are missing"
        found[name] = {"sites": sum(ran_sites(case.model).values()), "graphs": len(made_graphs(case.model)) - before}
    return found


def measure(family: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Counts, bytes and overhead of one case."""
    own, own_type = cache_bytes(build(family, **arguments), autocast=True)
    case = build(family, **arguments)
    plan = case.plan()
    sparvar.compile(case.model, plan, inner="eager", grain="attention")
    ours, our_type = cache_bytes(case, autocast=True)
    case = build(family, **arguments)
    torch._dynamo.reset()
    site_graphs.site_graphs.cache_clear()
    with timed_graphs() as inside:
        sparvar.compile(case.model, plan, inner="eager")
        case.generate()
        graphs = made_graphs(case.model)
        outside, wrappers = [], []
        for seed in range(5):
            times = CallTimes()
            inside.clear()
            with attachment(case.model).hooked(times):
                case.generate(seed=seed)
            calls = len(times.calls)
            total, compiled, graph = (sum(part) / calls * 1e6 for part in (times.calls, times.compiled, inside))
            outside.append(total - graph)
            wrappers.append(total - compiled)
    last = attachment(case.model)
    assert made_graphs(case.model) == graphs, "a new seed made new graphs"
    ran, expected = ran_sites(case.model), expected_sites(plan)
    return {
        "schedule": [list(grid) for grid in plan.schedule],
        "layers": len(plan.layers),
        "sites_rewritten": dict(ran),
        "sites_planned": dict(expected),
        "graphs": len(graphs),
        "graphs_by_kind": dict(Counter(kind for _, kind in graphs)),
        "left_alone": last.left_alone,
        "notes": last.notes,
        "cache_bytes_own": own,
        "cache_bytes_sparvar": ours,
        "cache_ratio": ours / own,
        "cache_types": [own_type, our_type],
        "calls_per_generation": calls,
        "guards_us_per_call": guard_seconds(case) * 1e6,
        "wrapper_us_per_call": statistics.median(wrappers),
        "outside_graphs_us_per_call": statistics.median(outside),
    }


def start_times() -> dict[str, float]:
    """Seconds of the first and second generation of Infinity 0.06M with Inductor, caches empty, then filled."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold", "warm"):
            environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
            command = [sys.executable, __file__, "--start-only"]
            text = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            times = json.loads(text.splitlines()[-1])
            found |= {f"{name}_first_image_s": times[0], f"{name}_second_image_s": times[1]}
    return found


def start() -> list[float]:
    with family_imports("Infinity"):
        case = build("Infinity")
        sparvar.compile(case.model, case.plan())
        seconds = []
        for _ in range(2):
            started = time.perf_counter()
            case.generate()
            seconds.append(time.perf_counter() - started)
    return seconds


def main(
    out: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
    start_only: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Measure every case and print it; OUT gets the same as JSON."""
    torch.set_grad_enabled(False)
    torch._dynamo.config.recompile_limit = 256  # Infinity compiles its norm itself, once per shape
    if start_only:
        typer.echo(json.dumps(start()))
        return
    results: dict[str, Any] = {"machine": machine(), "cases": {}}
    for name, (family, arguments) in CASES.items():
        with family_imports(family):
            results["cases"][name] = measure(family, arguments)
        torch._dynamo.reset()
        typer.echo(f"{name}: {json.dumps(results['cases'][name])}")
    results["infinity_warm_call"] = warm_call()
    typer.echo(json.dumps(results["infinity_warm_call"]))
    with family_imports("Infinity"):
        results["infinity_schedules"] = every_schedule()
    results["infinity_start"] = start_times()
    typer.echo(json.dumps(results["infinity_start"]))
    if out is not None:
        write_whole(out, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    typer.run(main)
