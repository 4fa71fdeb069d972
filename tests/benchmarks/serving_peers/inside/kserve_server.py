"""KServe's side: a `Model` for the Open Inference Protocol, as its guide to custom predictors writes one."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import kserve
from kserve import InferOutput, InferRequest, InferResponse, ModelServer
from kserve.utils.numpy_codec import from_np_dtype
from onnx_graph import Array, graph_of_environment


class OnnxModel(kserve.Model):
    """Computes one request; the SDK has no batching of its own."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._executors = int(os.environ["BENCHMARK_EXECUTORS"])
        # Made when it is first needed: the model is sent to worker processes, threads cannot be.
        self._executor: ThreadPoolExecutor | None = None
        self._graph = graph_of_environment()
        self.ready = True

    async def predict(
        self,
        payload: InferRequest,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> InferResponse:
        """Answer with all outputs, binary if the client asked for that."""
        feeds = {each.name: each.as_numpy() for each in payload.inputs}
        results: list[Array]
        if not self._executors:
            results = self._graph.run(feeds)
        else:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(self._executors)
            results = await asyncio.get_running_loop().run_in_executor(self._executor, self._graph.run, feeds)
        return InferResponse(
            response_id=payload.id or "",
            model_name=self.name,
            infer_outputs=[
                _output(name, result, binary=payload.use_binary_outputs)
                for name, result in zip(self._graph.output_names, results, strict=True)
            ],
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )


def _output(name: str, result: Array, *, binary: bool) -> InferOutput:
    output = InferOutput(name=name, shape=list(result.shape), datatype=from_np_dtype(result.dtype))
    output.set_data_from_numpy(result, binary_data=binary)
    return output


if __name__ == "__main__":
    ModelServer().start([OnnxModel("benchmark")])
