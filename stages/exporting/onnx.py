"""Owns the export to ONNX: one file with its weights, for any number of images at a time."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...storage_schemas.errors import InputError, MissingDependency
from ..models.weights import brief
from .form import LARGEST_FILE, Export, Run
from .graph import INPUT, Graph, graph_input, pictures, plain_operations

_FILE = "model.onnx"


class Onnx:
    """ONNX, by torch's exporter."""

    name = "onnx"

    def files(self, export: Export) -> Mapping[str, bytes]:
        for library in ("onnx", "onnxscript", "onnxruntime"):
            if importlib.util.find_spec(library) is None:
                raise MissingDependency(f"an export to ONNX needs {library}", "pip install 'teachonce[export]'")
        graph = Graph(export).eval()
        example = graph_input(export, pictures(export, 2))
        try:
            with plain_operations(), contextlib.redirect_stdout(io.StringIO()):
                program: Any = torch.onnx.export(
                    graph,
                    (example,),
                    dynamo=True,
                    verbose=False,
                    input_names=[INPUT],
                    output_names=[export.result],
                    dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1 << 20)},),
                )
            proto = program.model_proto
        except Exception as error:
            raise InputError(
                "torch cannot write this student as ONNX",
                code="export-failed",
                where=export.bundle,
                found=brief(error),
                hint="export it to torchscript",
            ) from error
        if proto.ByteSize() > LARGEST_FILE:
            raise InputError(
                "the export would be larger than its form allows",
                code="export-too-large",
                where=export.bundle,
                expected=f"at most {LARGEST_FILE} bytes",
                found=proto.ByteSize(),
                hint="export it to torchscript",
            )
        return {_FILE: proto.SerializeToString()}

    def reopen(self, export: Export, folder: Path) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(folder / _FILE), options, providers=["CPUExecutionProvider"])

        def run(images: Any) -> Any:
            (output,) = session.run([export.result], {INPUT: graph_input(export, images).numpy()})
            return np.asarray(output, np.float32)

        return run

    def how_to_load(self, folder: str) -> str:
        return f"onnxruntime.InferenceSession('{folder}/{_FILE}').run(None, {{'{INPUT}': images}})"
