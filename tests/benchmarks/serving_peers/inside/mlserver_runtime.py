"""MLServer's side: a custom runtime in the "advanced interface" of its guide; numpy in, numpy out."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from onnx_graph import Array, OnnxGraph


class OnnxRuntime(MLModel):
    """Computes what adaptive batching has put together, or one request."""

    async def load(self) -> bool:
        """Load the graph that model-settings.json names."""
        parameters = self.settings.parameters
        extra = parameters.extra
        self._graph = OnnxGraph(parameters.uri, threads=extra["threads"])
        # Only where inference happens in the main process: the event loop goes on while a batch is computed.
        self._executor = ThreadPoolExecutor(extra["executors"]) if extra["executors"] else None
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer with all outputs."""
        feeds = {each.name: NumpyCodec.decode_input(each) for each in payload.inputs}
        results: list[Array]
        if self._executor is None:
            results = self._graph.run(feeds)
        else:
            results = await asyncio.get_running_loop().run_in_executor(self._executor, self._graph.run, feeds)
        named = zip(self._graph.output_names, results, strict=True)
        outputs = [NumpyCodec.encode_output(name, result) for name, result in named]
        return InferenceResponse(model_name=self.name, outputs=outputs)
