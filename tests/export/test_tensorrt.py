"""TensorRT without its libraries: which ops have converters, and the calls that are made where it is installed."""

from __future__ import annotations

import ctypes
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparvar.artefact.engines import tensorrt as runtime
from sparvar.errors import ArtefactError, CaptureError, OptionError
from sparvar.export import export_artefact, family_of
from sparvar.export.capture import record_blocks
from sparvar.export.formats import tensorrt_format
from sparvar.export.formats.tensorrt_coverage import MOST_TOP, converters, covered, lowered
from sparvar.export.golden import golden_inputs, run_traced
from sparvar.export.programs import Generation
from sparvar.export.trace import export_graph
from sparvar.progress import Silent
from tests.export.small import build_short, short_plan

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made() -> Generation:
    """The small model's programs, as they are handed to torch-tensorrt."""
    family = family_of(build_short())
    plan, inputs = short_plan(family.model), golden_inputs(family, {})
    return tensorrt_format.trace(record_blocks(family, plan, inputs), Silent())


def test_every_op_of_every_program_has_a_converter(made: Generation) -> None:
    coverage = covered({name: program.exported for name, program in made.programs.items()})
    assert coverage.ok, str(coverage)
    assert list(coverage.ops) == ["begin", "scale01", "scale02", "scale03", "decode"]
    assert {"aten.scaled_dot_product_attention.default", "aten.topk.default"} <= set(coverage.ops["scale02"])
    assert "aten.index_select.default" in coverage.ops["scale03"]
    assert "every op has a converter in torch-tensorrt 2.13" in str(coverage)


def test_lowered_programs_draw_the_models_image(made: Generation) -> None:
    inputs = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in golden_inputs(made.family, {}).items()
    }
    import sparvar

    model = made.family.model
    sparvar.compile(model, made.plan, inner="eager")
    try:
        wanted = made.family.generate(inputs, 5)
    finally:
        sparvar.detach(model)
    torch.testing.assert_close(run_traced(made, inputs, 5), wanted, rtol=0, atol=1e-4)


def test_weights_are_inputs_so_that_engines_hold_none(made: Generation) -> None:
    for program in made.programs.values():
        assert not program.exported.state_dict
    assert "weights/layers.0.attn.qkv.weight" in made.programs["scale03"].inputs
    assert set(made.weights) == {
        name.removeprefix("weights/")
        for program in made.programs.values()
        for name in program.inputs
        if name.startswith("weights/")
    }


class Odd(nn.Module):
    """Ops that TensorRT does not take."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.linalg.eigvalsh(x[:3, :3]), torch.topk(x[0], MOST_TOP + 1).values, x.sum().double()


def test_what_has_no_converter_is_named_with_its_program() -> None:
    program = lowered(export_graph(Odd(), [torch.rand(3, MOST_TOP + 1)]))
    coverage = covered({"scale05": program})
    assert not coverage.ok
    refused = coverage.refused["scale05"]
    assert refused["aten.topk.default of more than 3840"] == 1 and refused["values in float64"] >= 1
    assert any("eigh" in op for op in refused)
    assert "not every op has a converter" in str(coverage) and "eigh" in str(coverage)


def test_the_list_of_converters_holds_names_of_ops() -> None:
    names = converters()
    assert len(names) > 200 and "aten.add.Tensor" in names and "aten.linalg_vector_norm.default" not in names
    assert all(name.count(".") == 2 for name in names)


def test_programs_with_other_ops_are_refused(made: Generation, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: Any) -> Generation:
        odd = lowered(export_graph(Odd(), [torch.rand(3, MOST_TOP + 1)]))
        found = Generation(made.family, made.plan)
        found.programs["scale05"] = types.SimpleNamespace(exported=odd)  # type: ignore[assignment]
        return found

    monkeypatch.setattr(tensorrt_format, "traced", without)
    with pytest.raises(CaptureError, match=r"ops that TensorRT has, got scale05: .*export it as aoti or onnx"):
        tensorrt_format.trace(None, Silent())  # type: ignore[arg-type]


def test_where_the_package_is_missing_the_message_names_the_extra(tmp_path: Path) -> None:
    model = build_short()
    with pytest.raises(OptionError, match=r"no torch_tensorrt, tensorrt; pip install 'sparvar\[tensorrt\]' on a"):
        export_artefact(model, short_plan(model), tmp_path / "a", formats=["tensorrt"])
    assert not (tmp_path / "a").exists()


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stands for torch-tensorrt; returns the calls that are made."""
    calls: list[dict[str, Any]] = []

    def convert(exported_program: Any, inputs: Any = None, *, arg_inputs: Any = None, **settings: Any) -> bytes:
        assert inputs is None
        exported_program.module(check_guards=False)(*arg_inputs)  # the examples fit the program
        calls.append({"inputs": arg_inputs, **settings})
        return b"engine"

    dynamo = types.SimpleNamespace(convert_exported_program_to_serialized_trt_engine=convert)
    monkeypatch.setattr(tensorrt_format.importlib, "import_module", {"torch_tensorrt.dynamo": dynamo}.__getitem__)
    monkeypatch.setattr(tensorrt_format, "require", lambda: None)
    monkeypatch.setattr(tensorrt_format, "facts", lambda: {"tensorrt": "10.13", "gpu": "sm_90"})
    return calls


def test_one_documented_call_builds_each_engine(
    made: Generation, compiler: list[dict[str, Any]], tmp_path: Path
) -> None:
    spec = tensorrt_format.write(made, tmp_path, tmp_path / "work", 0, Silent())
    assert len(compiler) == len(made.programs) == 5
    assert {name: compiler[0][name] for name in compiler[0] if name != "inputs"} == {
        "require_full_compilation": True,
        "truncate_double": True,
        "immutable_weights": True,
    }
    assert {path.name for path in (tmp_path / "tensorrt").iterdir()} == {f"{name}.engine" for name in made.programs}
    assert spec.device == "cuda" and spec.requires == {"tensorrt": "10.13", "gpu": "sm_90"}
    assert set(spec.native_files("tensorrt")) == {f"tensorrt/{name}.engine" for name in made.programs}
    begin = dict(zip(made.programs["begin"].inputs, spec.programs["begin"].inputs, strict=True))
    assert begin["inputs/cfg"].dtype == "float64"  # as callers give it


def test_an_engine_that_cannot_be_built_says_which(
    made: Generation, compiler: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any, **__: Any) -> bytes:
        raise RuntimeError("no tactic\nmore")

    broken = types.SimpleNamespace(convert_exported_program_to_serialized_trt_engine=fail)
    monkeypatch.setattr(tensorrt_format.importlib, "import_module", lambda _: broken)
    with pytest.raises(
        ArtefactError, match="program begin: must become a TensorRT engine, got RuntimeError: no tactic"
    ):
        tensorrt_format.write(made, tmp_path, tmp_path / "work", 0, Silent())


class Engine:
    """Stands for an engine with one float32 input and its double as output."""

    num_io_tensors = 2

    def get_tensor_name(self, number: int) -> str:
        return ("x", "y")[number]

    def get_tensor_mode(self, name: str) -> str:
        return {"x": "in", "y": "out"}[name]

    def get_tensor_dtype(self, _name: str) -> str:
        return "f32"

    def get_tensor_shape(self, _name: str) -> tuple[int, ...]:
        return (3,)

    def create_execution_context(self) -> Engine:
        self.addresses: dict[str, int] = {}
        return self

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        x, y = ((ctypes.c_float * 3).from_address(self.addresses[name]) for name in ("x", "y"))
        for number in range(3):
            y[number] = 2 * x[number]
        return stream == 11


def engine(monkeypatch: pytest.MonkeyPatch, found: Engine | None) -> runtime.TensorRtEngine:
    made = object.__new__(runtime.TensorRtEngine)
    dtypes = {"float32": "f32", **{name: name for name in ("float16", "bfloat16", "int32", "int64", "bool")}}
    made.trt = types.SimpleNamespace(TensorIOMode=types.SimpleNamespace(INPUT="in"), **dtypes)
    made.torch, made.device = torch, torch.device("cpu")
    made._runtime = types.SimpleNamespace(deserialize_cuda_engine=lambda _data: found)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: types.SimpleNamespace(cuda_stream=11))
    return made


def test_the_runtime_casts_binds_and_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.engine").write_bytes(b"engine")
    made = engine(monkeypatch, Engine())
    (out,) = made.program(tmp_path / "a.engine", 1)([torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)])
    assert torch.equal(out, torch.tensor([2.0, 4.0, 6.0]))


def test_an_engine_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.engine").write_bytes(b"engine")
    with pytest.raises(ArtefactError, match=r"program a\.engine: must be an engine that TensorRT can read"):
        engine(monkeypatch, None).program(tmp_path / "a.engine", 1)


def test_other_requirements_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "facts", lambda: {"tensorrt": "10.13", "gpu": "sm_80"})
    made = engine(monkeypatch, None)
    made.check({"tensorrt": "10.13"})
    with pytest.raises(ArtefactError, match="this machine's gpu: must be sm_90, which the engines were built for"):
        made.check({"tensorrt": "10.13", "gpu": "sm_90"})
