"""Owns the export to TorchScript: a traced program that torch alone loads, in Python or C++."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...storage_schemas.errors import InputError
from ..models.weights import brief
from .form import Export, Run
from .graph import Graph, graph_input, pictures, plain_operations

_FILE = "model.pt"


class TorchScript:
    """TorchScript, by `torch.jit.trace`."""

    name = "torchscript"

    def files(self, export: Export) -> Mapping[str, bytes]:
        graph, buffer = Graph(export).eval(), io.BytesIO()
        try:
            with plain_operations(), torch.no_grad():
                example = graph_input(export, pictures(export, 2))
                traced: Any = torch.jit.trace(graph, example, check_trace=False)  # type: ignore[no-untyped-call]
                torch.jit.save(traced, buffer)  # type: ignore[no-untyped-call]
        except Exception as error:
            raise InputError(
                "torch cannot trace this student",
                code="export-failed",
                where=export.bundle,
                found=brief(error),
                hint="export it to onnx",
            ) from error
        return {_FILE: buffer.getvalue()}

    def reopen(self, export: Export, folder: Path) -> Run:
        with plain_operations():
            program: Any = torch.jit.load(str(folder / _FILE), map_location="cpu")  # type: ignore[no-untyped-call]

        def run(images: Any) -> Any:
            with torch.inference_mode():
                return program(graph_input(export, images)).numpy()

        return run

    def how_to_load(self, folder: str) -> str:
        return f"torch.jit.load('{folder}/{_FILE}')(images)"
