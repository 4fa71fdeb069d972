"""tritonclient over TLS, with a client certificate and a token: ``python triton_secured.py DIRECTIONS``.

The JSON file holds ``http`` and ``grpc`` (addresses of front ends over numpy functions, for ``localhost``), ``ca``,
``cert``, ``key`` (PEM files) and ``token``.
"""

import asyncio
import json
import ssl
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from tritonclient.utils import InferenceServerException

DIRECTIONS: dict[str, str] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
ARRAY = np.arange(300_000, dtype=np.float32).reshape(1, -1)
TLS_FILES = {"ca_certs": DIRECTIONS["ca"], "certfile": DIRECTIONS["cert"], "keyfile": DIRECTIONS["key"]}
CHANNEL_FILES = {
    "root_certificates": DIRECTIONS["ca"],
    "private_key": DIRECTIONS["key"],
    "certificate_chain": DIRECTIONS["cert"],
}


def shown(token: str = DIRECTIONS["token"]) -> dict[str, str]:
    """Return new headers for each call: the client adds its own to those of the last one."""
    return {"authorization": f"Bearer {token}"}


def is_refusal(error: InferenceServerException) -> bool:
    return "authorization" in str(error) and str(error.status()) in ("401", "StatusCode.UNAUTHENTICATED")


def given(kind: Any, array: Any) -> Any:
    tensor = kind.InferInput("x", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array)
    return tensor


def context() -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=DIRECTIONS["ca"])
    made.load_cert_chain(DIRECTIONS["cert"], DIRECTIONS["key"])
    return made


def check(kind: Any, client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_model_metadata("add", headers=shown())
    for array in (ARRAY[:, :1], ARRAY, ARRAY[:, :1], ARRAY[:, :1]):
        answer = client.infer("identity_fp32", [given(kind, array)], headers=shown())
        assert np.array_equal(answer.as_numpy("y"), array)
    for headers in ({}, shown("nobody-knows-this-token")):
        refusal = None
        try:
            client.infer("identity_fp32", [given(kind, ARRAY[:, :1])], headers=headers)
        except InferenceServerException as error:
            refusal = error
        assert refusal is not None
        assert is_refusal(refusal), refusal


async def check_async(kind: Any, client: Any) -> None:
    async with client:
        assert await client.is_server_ready()
        answers = await asyncio.gather(
            *(client.infer("identity_fp32", [given(kind, ARRAY[:, : n + 1])], headers=shown()) for n in range(20))
        )
        assert [answer.as_numpy("y").shape for answer in answers] == [(1, n + 1) for n in range(20)]
        refusal = None
        try:
            await client.infer("identity_fp32", [given(kind, ARRAY[:, :1])])
        except InferenceServerException as error:
            refusal = error
        assert refusal is not None
        assert is_refusal(refusal), refusal


async def main() -> None:
    await check_async(
        triton_http_aio,
        triton_http_aio.InferenceServerClient(DIRECTIONS["http"], ssl=True, ssl_context=context()),
    )
    await check_async(
        triton_grpc_aio, triton_grpc_aio.InferenceServerClient(DIRECTIONS["grpc"], ssl=True, **CHANNEL_FILES)
    )


check(triton_http, triton_http.InferenceServerClient(DIRECTIONS["http"], ssl=True, ssl_options=TLS_FILES))
check(triton_grpc, triton_grpc.InferenceServerClient(DIRECTIONS["grpc"], ssl=True, **CHANNEL_FILES))
asyncio.run(main())
print("all answered")
