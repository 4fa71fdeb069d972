"""Print what each backend makes of dense and of each kind of int8: quality, speed, how far neighbours move an answer.

    python tests/benchmarks/backends.py [--folder serveprune-demo] [--tokens 128]

The demo's models, batch of 8, one thread. Every graph on every backend is timed in turns with dense on ONNX Runtime,
in this one process; a speedup is the median of pairs taken within a round, with the 10th and 90th percentile. Quality
and batch deviation are those a build measures, on the held-out samples.
"""

import argparse
import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

# Read once, when torch and NNCF load.
os.environ["OMP_NUM_THREADS"] = "1"

from timed_tiers import THREADS, batch_of, machine, speed_cell

from serveprune.artifacts.builder import BuildRequest
from serveprune.artifacts.environment import environment
from serveprune.artifacts.key import source_recipe
from serveprune.artifacts.store import Artifact, ArtifactStore
from serveprune.backends.protocol import Session
from serveprune.backends.selection import ONNX_RUNTIME, OPENVINO, load_backend
from serveprune.cli.demo import lay_out
from serveprune.compression.build import build
from serveprune.compression.calibration import BuildSamples, samples_of, task_of
from serveprune.compression.passes import PassContext, apply_pass
from serveprune.config.loading import load_config
from serveprune.config.model import ModelConfig
from serveprune.config.profile import QuantizeOptions
from serveprune.config.root import ServePruneConfig
from serveprune.errors import ServePruneError
from serveprune.evaluation.batch_deviation import batch_deviation
from serveprune.evaluation.comparison import compare
from serveprune.evaluation.latency import latency_clock, measure_latency
from serveprune.evaluation.task import Task
from serveprune.oip.tensor import Array

BATCH_SIZE = 8
_TIMING_SECONDS = 8.0
SCHEMES = ("dynamic", "static", "nncf")


def main() -> None:
    """Quantize, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("serveprune-demo"))
    parser.add_argument("--tokens", type=int, default=128, help="Length of every text that is timed.")
    options = parser.parse_args()
    config = load_config(lay_out(options.folder))
    made_with = environment(["nncf", "openvino"])
    versions = ", ".join(f"{name} {made_with[name]}" for name in ("onnxruntime", "openvino", "nncf"))
    print(f"{machine()}; {versions}; batch of {BATCH_SIZE}, {THREADS} thread, {options.tokens} tokens\n")
    print("| model | graph | backend | speedup | ms | quality against dense | batch deviation |\n" + "|---" * 7 + "|")
    for (name, _), model in config.served().items():
        with TemporaryDirectory() as folder:
            for row in _rows(config, name, model, Path(folder), tokens=options.tokens):
                print("| " + " | ".join((name, *row)) + " |", flush=True)


def _rows(
    config: ServePruneConfig, name: str, model: ModelConfig, folder: Path, *, tokens: int
) -> Iterator[tuple[str, ...]]:
    dense = _dense(config, name, model)
    samples = samples_of(dense, model)
    task = task_of(dense, model, samples)
    feeds = batch_of(samples.evaluation, size=BATCH_SIZE, tokens=tokens)
    graphs = {"float32": dense.graph} | {f"int8 {scheme}": _int8(dense, samples, scheme, folder) for scheme in SCHEMES}
    with closing(load_backend(ONNX_RUNTIME).load(dense.graph, threads=THREADS)) as reference:
        for label, graph in graphs.items():
            for backend in (ONNX_RUNTIME, OPENVINO):
                try:
                    session = load_backend(backend).load(graph, threads=THREADS)
                except ServePruneError as error:
                    yield (label, backend, error.message, "", "", "")
                    continue
                with closing(session):
                    yield (label, backend, *_cells(reference, session, samples, task=task, feeds=feeds))


def _cells(
    reference: Session, session: Session, samples: BuildSamples, *, task: Task, feeds: Mapping[str, Array]
) -> tuple[str, ...]:
    compared = compare(
        reference, session, samples.evaluation, task=task, batch_size=BATCH_SIZE, on_progress=lambda fraction: None
    )
    deviation = batch_deviation(
        session, samples.evaluation, task=compared.task, outputs=reference.outputs, batch_size=BATCH_SIZE
    )
    latency = measure_latency(
        lambda: reference.run(feeds),
        lambda: session.run(feeds),
        batch_size=BATCH_SIZE,
        threads=THREADS,
        budget_seconds=_TIMING_SECONDS,
        clock=latency_clock(THREADS),
    )
    metrics = ", ".join(f"{metric} {value:.4f}" for metric, value in compared.quality.items())
    return speed_cell(latency), f"{latency.tier_ms:.2f}", metrics, f"{deviation:.2g}"


def _dense(config: ServePruneConfig, name: str, model: ModelConfig) -> Artifact:
    store = ArtifactStore(config.store.folder, max_bytes=config.store.max_bytes)
    request = BuildRequest(model_name=name, model=model)
    build(request, store=store, threads=THREADS, threads_of_serving=THREADS, on_progress=lambda progress: None)
    dense = store.find_dense(source_recipe(model))
    assert dense is not None
    return dense


def _int8(dense: Artifact, samples: BuildSamples, scheme: str, folder: Path) -> Path:
    workspace = folder / f"{scheme}-workspace"
    workspace.mkdir()
    context = PassContext(
        options=QuantizeOptions.model_validate({"scheme": scheme}),
        calibration=samples.calibration,
        cpu=environment()["cpu"],
        threads=THREADS,
        seed=0,
        workspace=workspace,
        progress=lambda fraction: None,
    )
    output = folder / f"{scheme}.onnx"
    apply_pass("quantize", dense.graph, output=output, context=context)
    return output


if __name__ == "__main__":
    main()
