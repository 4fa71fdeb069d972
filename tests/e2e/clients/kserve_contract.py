"""What KServe and its users ask a predictor for, by the SDK's clients. Argument: a JSON file.

It holds ``http``, ``grpc`` (addresses), ``name`` (of the InferenceService) and ``input``: name, datatype, shape, data.
"""

import asyncio
import json
import sys
from pathlib import Path

from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig

DIRECTIONS = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
NAME, URL = DIRECTIONS["name"], f"http://{DIRECTIONS['http']}"


def request() -> InferRequest:
    given = DIRECTIONS["input"]
    return InferRequest(NAME, [InferInput(given["name"], given["shape"], given["datatype"], data=given["data"])])


async def over_rest() -> list[list[int]]:
    async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=60, verify=False)) as client:
        assert await client.is_server_live(URL)
        assert await client.is_server_ready(URL)
        assert await client.is_model_ready(URL, NAME)
        assert not await client.is_model_ready(URL, "another")
        answer = await client.infer(URL, request(), model_name=NAME)
    assert answer.model_name == NAME
    return [list(output.shape) for output in answer.outputs]


async def over_grpc() -> list[list[int]]:
    async with InferenceGRPCClient(DIRECTIONS["grpc"]) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready(NAME)
        answer = await client.infer(request())
    assert answer.model_name == NAME
    return [list(output.shape) for output in answer.outputs]


if __name__ == "__main__":
    shapes = asyncio.run(over_rest())
    assert asyncio.run(over_grpc()) == shapes
    print(json.dumps(shapes))
