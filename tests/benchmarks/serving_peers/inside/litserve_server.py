"""LitServe's side: a `LitAPI` with the hooks that its guide to batching names."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import litserve
import numpy as np
from onnx_graph import Array, graph_of_environment

Feeds = Mapping[str, Array]


class OnnxApi(litserve.LitAPI):
    """A flat list per input in, a flat list per output out: LitServe's JSON is whatever one makes of it."""

    def setup(self, device: str) -> None:
        """Load the graph; LitServe calls it once in each worker."""
        self._graph = graph_of_environment()

    def decode_request(self, request: Mapping[str, Sequence[float]]) -> Feeds:
        """Return the inputs of one row."""
        return {name: self._graph.row(name, request[name]) for name in self._graph.input_types}

    def batch(self, inputs: Sequence[Feeds]) -> Feeds:
        """Put rows together."""
        return {name: np.concatenate([each[name] for each in inputs]) for name in inputs[0]}

    def predict(self, x: Feeds) -> list[Array]:
        """Compute all outputs of one row or many."""
        return self._graph.run(x)

    def unbatch(self, output: Sequence[Array]) -> list[list[Array]]:
        """Take rows apart."""
        return [[each[index] for each in output] for index in range(len(output[0]))]

    def encode_response(self, output: Sequence[Array]) -> dict[str, Any]:
        """Return the outputs of one row."""
        return {name: each.ravel().tolist() for name, each in zip(self._graph.output_names, output, strict=True)}


def main() -> None:
    """Serve until the process is stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--api-servers", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--batch-timeout", type=float)
    parser.add_argument("--fast-queue", action="store_true")
    arguments = parser.parse_args()
    api = OnnxApi(max_batch_size=arguments.batch_size, batch_timeout=arguments.batch_timeout)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=arguments.workers, fast_queue=arguments.fast_queue, timeout=False
    )
    server.run(
        host="127.0.0.1",
        port=arguments.port,
        num_api_servers=arguments.api_servers,
        log_level="warning",
        generate_client_file=False,
    )


if __name__ == "__main__":
    main()
