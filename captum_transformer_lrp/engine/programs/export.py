"""Graphs of explanations in files, for programs that have PyTorch or ONNX alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from captum_transformer_lrp.engine.programs.graphs import outputs_of

SUFFIXES = (".pt2", ".onnx")


def self_checking(graph: fx.GraphModule, results: int) -> fx.GraphModule:
    """A graph whose results are NaN where a decision of Python's would be another one.

    Args:
        graph: returns results, and then a boolean for each decision; its nodes are changed.
        results: how many results there are.
    """
    nodes, output = graph.graph, graph.graph.output_node()
    found, checks = outputs_of(graph)[:results], outputs_of(graph)[results:]
    with nodes.inserting_before(output):
        if checks:
            holds = nodes.call_function(torch.all, (nodes.call_function(torch.stack, (checks,)),))
            found = [nodes.call_function(torch.where, (holds, one, torch.nan)) for one in found]
    output.args = (found[0] if len(found) == 1 else tuple(found),)
    nodes.find_nodes(op="placeholder")[-1].target = "target"
    return fx.GraphModule(graph, nodes)  # torch.export reads the names of its Python's arguments


def check_name(path: Path) -> None:
    """Raise for a file of a format that cannot be written.

    Raises:
        ValueError: for a name that ends in neither ``.pt2`` nor ``.onnx``.
        ImportError: for ``.onnx``, where the package onnxscript is missing.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"the file's name must end in one of {SUFFIXES}, found {str(path)!r}")
    if path.suffix == ".onnx" and find_spec("onnxscript") is None:
        raise ImportError("ONNX needs a package that is not installed: pip install onnxscript")


def save(
    explanation: nn.Module,
    tensors: Sequence[Tensor],
    axes: Sequence[Collection[int]],
    longest: int,
    path: Path,
) -> None:
    """Write an explanation into a file, in the format that its name says.

    Args:
        explanation: the program.
        tensors: inputs like those to come.
        axes: for each of them the dimensions that may have another size: the batch, the tokens.
        longest: at most so many tokens.
        path: the file.
    """
    sizes: dict[int, Any] = {0: torch.export.Dim.DYNAMIC}
    if longest:
        sizes[1] = torch.export.Dim("tokens", min=2, max=longest)
    shapes = tuple({dim: sizes[dim] for dim in one} for one in axes)
    with torch.no_grad():
        program = torch.export.export(
            explanation, tuple(tensors), dynamic_shapes=shapes, strict=False
        )
        if path.suffix == ".pt2":
            torch.export.save(program, path)
        else:
            names = [f"input_{number}" for number in range(len(tensors) - 1)]
            program = program.run_decompositions({torch.ops.aten.copysign.Tensor: _copysign})
            torch.onnx.export(program, (), path, dynamo=True, verbose=False,
                              input_names=[*names, "target"])  # fmt: skip


def _copysign(size: Tensor, sign: Tensor) -> Tensor:
    """``torch.copysign``, which ONNX has not; 1 / −0 is negative."""
    return torch.where((sign < 0) | (sign.reciprocal() < 0), -size.abs(), size.abs())
