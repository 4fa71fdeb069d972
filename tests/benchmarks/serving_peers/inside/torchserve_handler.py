"""TorchServe's side: a custom handler, as docs/custom_service.md describes, that computes a batch in one run."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx_graph import OnnxGraph


class OnnxHandler:
    """Rows come as JSON objects over HTTP, and as a map of raw bytes over gRPC; each is answered as it came."""

    def initialize(self, context: Any) -> None:
        """Load the graph; TorchServe calls it once in each worker."""
        path = os.path.join(context.system_properties["model_dir"], "model.onnx")  # noqa: PTH118  (TorchServe's own way)
        self._graph = OnnxGraph(path, threads=context.model_yaml_config["handler"]["threads"])

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[str | bytes]:
        """Answer a batch of requests, one row each."""
        # JSON arrives decoded under "body", the entries of a gRPC request under their own names.
        bodies = [request.get("body", request) for request in data]
        graph = self._graph
        feeds = {
            name: np.concatenate([graph.row(name, body[name]) for body in bodies])
            if len(bodies) > 1
            else graph.row(name, bodies[0][name])
            for name in graph.input_types
        }
        results = graph.run(feeds)
        return [self._answer(request, [result[index] for result in results]) for index, request in enumerate(data)]

    def _answer(self, request: Mapping[str, Any], row: "list[np.ndarray[Any, Any]]") -> str | bytes:
        if "body" not in request:
            return b"".join(output.tobytes() for output in row)
        # As text: TorchServe would write a dictionary with an indent, which takes Python's slow encoder.
        named = zip(self._graph.output_names, row, strict=True)
        return json.dumps({name: output.ravel().tolist() for name, output in named})
