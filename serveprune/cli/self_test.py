"""Real requests to every tier of a running server, over HTTP and gRPC."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from serveprune.cli.client import Answer, Client, own_clients
from serveprune.errors import ServePruneError
from serveprune.evaluation.dataset import load_dataset
from serveprune.models.registry import Model
from serveprune.oip.tensor import Tensor
from serveprune.routing.tier_selection import QUALIFIER
from serveprune.server import Endpoints, Server

_ROWS = 4


def self_test(server: Server, endpoints: Endpoints) -> list[str]:
    """Return what is wrong with a server whose variants have settled; empty when all is well.

    Every tier must be ready, and answer the first rows of the model's own evaluation or calibration set over
    both protocols: as the tier that was asked for, with finite numbers, and the same ones over both.
    """
    problems: list[str] = []
    try:
        http, grpc = own_clients(server.config.server, endpoints)
    except ServePruneError as error:
        return [f"the server cannot be asked: {error.message}"]
    try:
        for model in server.registry.models():
            of_version = f" of version {model.version}" if len(server.registry.versions(model.name)) > 1 else ""
            problems += _unready(
                model, server.controlplane.tiers(model.name, version=model.version), of_version=of_version
            )
            try:
                inputs = _inputs(model)
            except ServePruneError as error:
                problems.append(f"{model.name}{of_version}: no inputs to test it with: {error.message}")
                continue
            for tier, variant in model.variants.items():
                if variant.instance is not None:
                    problems += _check_tier(model, tier, inputs, of_version=of_version, http=http, grpc=grpc)
    finally:
        grpc.close()
    return problems


def _unready(model: Model, described: Mapping[str, Any], *, of_version: str) -> Iterator[str]:
    for tier in described["tiers"]:
        if tier["state"] != "ready":
            reasons = "; ".join(tier["reasons"])
            yield f"{model.name}{QUALIFIER}{tier['tier']}{of_version} is {tier['state']}" + (
                f": {reasons}" if reasons else ""
            )


def _check_tier(
    model: Model, tier: str, inputs: Sequence[Tensor], *, of_version: str, http: Client, grpc: Client
) -> Iterator[str]:
    answers: dict[str, Answer] = {}
    asked = f"{model.name}{QUALIFIER}{tier}"
    name = f"{asked}{of_version}"
    for protocol, client in (("HTTP", http), ("gRPC", grpc)):
        try:
            answers[protocol] = client.infer(asked, inputs, version=model.version, parameters={"strict_tier": True})
        except ServePruneError as error:
            yield f"{name} over {protocol}: {error.message}"
            continue
        yield from (f"{name} over {protocol}: {problem}" for problem in _problems(tier, answers[protocol]))
    if len(answers) == 2 and not _same(answers["HTTP"], answers["gRPC"]):
        yield f"{name}: HTTP and gRPC gave different answers to the same request"


def _problems(wanted: str, answer: Answer) -> Iterator[str]:
    if answer.tier != wanted:
        yield f"asked for {wanted}, served by {answer.tier} ({answer.tier_reason})"
    for output in answer.outputs:
        if output.array.dtype.kind == "f" and not np.isfinite(output.array).all():
            yield f"output {output.name} holds NaN or infinity"


def _same(first: Answer, second: Answer) -> bool:
    return all(
        one.name == other.name and np.allclose(one.array, other.array, rtol=1e-4, atol=1e-5)
        for one, other in zip(first.outputs, second.outputs, strict=True)
        if one.array.dtype.kind == "f"
    )


def _inputs(model: Model) -> list[Tensor]:
    """Return a few rows of the model's own data, of equal shape, as tensors of the graph's inputs."""
    instance = model.dense.instance
    if instance is None:
        return []
    file = model.config.evaluation or model.config.calibration
    if file is None:
        return [Tensor.of(name, array) for name, array in instance.example(1).items()]
    few = file.model_copy(update={"samples": min(file.samples or _ROWS, _ROWS)})
    dataset = load_dataset(few, inputs=instance.inputs, preprocessor=model.preprocessor)
    _, feeds = next(iter(dataset.batches(_ROWS)))
    return [Tensor.of(name, array) for name, array in feeds.items()]
