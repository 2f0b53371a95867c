"""An exported program as an ONNX model of opset 23 in standard ops alone."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from sparvar.errors import CaptureError, message
from sparvar.export.trace import Program

OPSET = 23
"""The first with ``Attention``."""
CONTROL = ("If", "Loop", "Scan")


def convert(program: Program) -> Any:
    """The model, an ``onnx_ir.Model``: inputs and outputs in the program's order, static shapes, no functions.

    A value that comes in and goes out again is put out under the name ``new/NAME``, because a name in ONNX has one
    value.

    Raises:
        CaptureError: an op has no translation, or needs control flow or an op that is not ONNX's own.
    """
    inputs = list(program.inputs)
    outputs = [f"new/{name}" if name in inputs else name for name in program.outputs]
    with _quiet():
        try:
            found = torch.onnx.export(
                program.exported,
                (),
                dynamo=True,
                opset_version=OPSET,
                input_names=inputs,
                output_names=outputs,
                custom_translation_table=_translations(),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise CaptureError(
                message(f"program {program.name}", "be made of ops that ONNX has", reason, "export it as aoti")
            ) from error
    assert found is not None
    model: Any = found.model
    _check(program, model)
    _bare(model)
    return model


def _bare(model: Any) -> None:
    """Take out notes on where values came from: stack traces, with paths of this machine."""
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    for each in (model, graph, *graph, *values):
        each.metadata_props.clear()
        each.doc_string = None


def _check(program: Program, model: Any) -> None:
    foreign = sorted({f"{node.domain}::{node.op_type}" for node in model.graph if node.domain})
    control = sorted({node.op_type for node in model.graph if node.op_type in CONTROL})
    if foreign or control or model.functions:
        got = ", ".join([*foreign, *control, *(str(name) for name in model.functions)])
        must = "be made of ops of ONNX without control flow"
        raise CaptureError(message(f"program {program.name}", must, got, "export it as aoti"))
    opset = model.opset_imports
    if dict(opset) != {"": OPSET}:
        raise CaptureError(message(f"program {program.name}", f"need opset {OPSET} alone", dict(opset)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on packages that nothing here needs."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Ours, where the exporter's own takes other ops than runtimes are good at."""
    return {
        torch.ops.aten.linear.default: _linear,
        torch.ops.aten.adaptive_avg_pool2d.default: _area,
    }


def _opset() -> Any:
    """ONNX's ops as functions; its own annotations want more than values that are traced can say."""
    return importlib.import_module("onnxscript").opset23


def _linear(input: Any, weight: Any, bias: Any = None) -> Any:
    """``Gemm``, which takes weights as they are stored; ``MatMul`` would want them transposed, as copies."""
    op = _opset()
    *lead, channels = (int(size) for size in input.shape)
    flat = input if len(lead) == 1 else op.Reshape(input, op.Constant(value_ints=[math.prod(lead), channels]))
    out = op.Gemm(flat, weight, transB=1) if bias is None else op.Gemm(flat, weight, bias, transB=1)
    return out if len(lead) == 1 else op.Reshape(out, op.Constant(value_ints=[*lead, int(weight.shape[0])]))


def _area(input: Any, output_size: Sequence[int]) -> Any:
    """Two products with matrices of means; the exporter's own gathers every cell of every window."""
    import onnx_ir as ir

    op = _opset()
    *_, height, width = (int(size) for size in input.shape)
    rows, columns = means(height, int(output_size[0])), means(width, int(output_size[1])).T.contiguous()
    left, right = (op.CastLike(op.Constant(value=ir.tensor(each.numpy())), input) for each in (rows, columns))
    return op.MatMul(op.MatMul(left, input), right)


def means(size: int, target: int) -> torch.Tensor:
    """The matrix [target, size] of an area's means along one axis, as ``adaptive_avg_pool2d`` takes them."""
    matrix = torch.zeros(target, size)
    for number in range(target):
        start, end = number * size // target, -(-(number + 1) * size // target)
        matrix[number, start:end] = 1 / (end - start)
    return matrix
