import json
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from serveprune.cli.client import Answer, Client, GrpcClient, HttpClient
from serveprune.cli.credentials import CaFile, Cert, Key, TokenFile, credentials
from serveprune.errors import InvalidArgument, NotFound
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import Tensor

_SHOWN_ELEMENTS = 8


def infer(
    model: Annotated[str, typer.Argument(help="Model name, tier-qualified if you like: minilm@int8.")],
    text: Annotated[
        list[str] | None, typer.Option(help="A text; repeat for a batch. '-' reads lines from stdin.")
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="A PNG or JPEG file; repeat for a batch.")] = None,
    tensors: Annotated[
        Path | None, typer.Option("--input", help=".npz with one array per input of the model, batch axis first.")
    ] = None,
    input_name: Annotated[
        str | None, typer.Option(help="Name of the BYTES input. Default: text, or image_bytes.")
    ] = None,
    tier: Annotated[str | None, typer.Option(help="Ask for this tier.")] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option(help="Ask for the best tier that answers within so many milliseconds.")
    ] = None,
    min_quality: Annotated[
        float | None, typer.Option(help="Ask for a tier of at least this quality; dense has 1.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="Fail rather than be served by another tier.")] = False,
    url: Annotated[str, typer.Option(help="HTTP endpoint, http:// or https://.")] = "http://127.0.0.1:8080",
    grpc: Annotated[
        str | None,
        typer.Option(help="gRPC address (host:port, or grpcs://host:port for TLS); used instead of HTTP."),
    ] = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    cert: Cert = None,
    key: Key = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON.")] = False,
) -> None:
    """Send one inference to a running server and show the answer."""
    inputs = _read_inputs(text or [], image or [], tensors, input_name)
    asked = {
        "tier": tier or None,
        "max_latency_ms": max_latency_ms,
        "min_quality": min_quality,
        "strict_tier": strict or None,
    }
    parameters: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    given = credentials(token_file=token_file, ca_file=ca_file, cert=cert, key=key)
    client: Client = GrpcClient(grpc, credentials=given) if grpc else HttpClient(url, credentials=given)
    answer = client.infer(model, inputs, parameters=parameters)
    if as_json:
        typer.echo(json.dumps(_as_json(answer)))
        return
    typer.echo(f"tier {answer.tier} ({answer.tier_reason})")
    for output in answer.outputs:
        shown = np.array2string(output.array.reshape(-1)[:_SHOWN_ELEMENTS], precision=4, separator=", ")
        more = " ..." if output.array.size > _SHOWN_ELEMENTS else ""
        typer.echo(f"{output.name} {output.datatype} {list(output.shape)} {shown}{more}")


def _read_inputs(text: list[str], image: list[Path], tensors: Path | None, name: str | None) -> list[Tensor]:
    if sum(map(bool, (text, image, tensors))) != 1:
        raise InvalidArgument("expected exactly one of --text, --image and --input")
    if text:
        lines = sys.stdin.read().splitlines() if text == ["-"] else text
        return [_bytes_tensor(name or "text", [line.encode() for line in lines])]
    if image:
        missing = next((path for path in image if not path.is_file()), None)
        if missing:
            raise NotFound(f"no such file: {missing}")
        return [_bytes_tensor(name or "image_bytes", [path.read_bytes() for path in image])]
    assert tensors is not None
    try:
        with np.load(tensors, allow_pickle=False) as arrays:
            return [Tensor.of(key, arrays[key]) for key in arrays.files]
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{tensors}: expected an .npz file of arrays: {error}") from error


def _bytes_tensor(name: str, values: list[bytes]) -> Tensor:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return Tensor(name, Datatype.BYTES, array)


def _as_json(answer: Answer) -> dict[str, Any]:
    return {
        "tier": answer.tier,
        "tier_reason": answer.tier_reason,
        "outputs": [
            {
                "name": output.name,
                "datatype": str(output.datatype),
                "shape": list(output.shape),
                "data": [
                    value.decode("utf-8", "replace") if isinstance(value, bytes) else value
                    for value in output.array.reshape(-1).tolist()
                ],
            }
            for output in answer.outputs
        ],
    }
