"""Print what a server's memory does: as tiers come and go, and over many requests of all shapes.

    python tests/benchmarks/memory.py [--folder serveprune-demo] [--rounds 20] [--requests 20000]

Needs the store of `serveprune demo`. The first table loads four tiers of MiniLM in this process, runs them on two
threads with batches and lengths of all sizes, and takes them out of service, again and again. Its start is a process
that already serves the image classifier: what the libraries' own code and tables take is there before. The second
starts `serveprune serve` and sends it requests of one to four rows and 4 to 32 tokens, over eight connections, to
those four tiers. Resident sizes in MiB.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import numpy as np
import orjson
import psutil
import yaml
from e2e.server_process import ServerProcess
from timed_tiers import machine

from serveprune.artifacts.store import Artifact, ArtifactStore
from serveprune.backends.selection import load_backend
from serveprune.cli.demo import lay_out
from serveprune.config.loading import load_config
from serveprune.config.model import DENSE
from serveprune.config.root import ServePruneConfig
from serveprune.models.instance import BatchSettings, Instance
from serveprune.models.repository import VariantRepository
from serveprune.oip.tensor import Array

MODEL, TIERS = "minilm", (DENSE, "int8", "lean", "lean-int8")
SMALL_MODEL = "fashion"
EXECUTORS = 2
RUNS = 16
"""Of each executor, in each round."""
CONNECTIONS = 8
VOCABULARY = (1000, 20_000)
MOST_RATIO = 1.1
CHECKPOINTS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("serveprune-demo"))
    parser.add_argument("--rounds", type=int, default=20, help="How often the tiers are loaded and unloaded.")
    parser.add_argument("--requests", type=int, default=20_000, help="How many the server is sent.")
    arguments = parser.parse_args()
    config_file = lay_out(arguments.folder)
    print(f"{machine()}\n")
    kept = come_and_go(load_config(config_file), rounds=arguments.rounds)
    grown = under_requests(config_file, requests=arguments.requests)
    print(f"\nafter unloading, at most {kept:.3f} of the start; the last half of the requests added {grown:+.1f} MiB")
    if kept > MOST_RATIO:
        raise SystemExit(f"expected at most {MOST_RATIO} of the start")


def come_and_go(config: ServePruneConfig, *, rounds: int) -> float:
    """Load and unload the tiers so many times, and return the largest resident size after it, relative to the start."""
    store = ArtifactStore(config.store.folder, max_bytes=config.store.max_bytes)
    repository = VariantRepository(store, load_backend, threads=1, any_environment=False)
    small = _load(repository, {DENSE: _artifact(config, repository, SMALL_MODEL, DENSE)}, model=SMALL_MODEL)
    artifacts = {tier: _artifact(config, repository, MODEL, tier) for tier in TIERS}
    random = np.random.default_rng(0)
    largest = 0.0
    with ThreadPoolExecutor(EXECUTORS) as executors:
        list(executors.map(lambda _: small[0].run(small[0].example(8)), range(EXECUTORS * RUNS)))
        start = _resident_mib()
        print(f"start: {start:.0f} MiB\n")
        print("| round | loaded | after requests | unloaded | of the start |\n|---|---|---|---|---|")
        for number in range(1, rounds + 1):
            instances = _load(repository, artifacts, model=MODEL)
            loaded = _resident_mib()
            seeds = random.integers(2**31, size=EXECUTORS).tolist()
            list(executors.map(lambda seed, instances=instances: _use(instances, seed=seed), seeds))
            used = _resident_mib()
            for instance in instances:
                instance.retire()
            del instances, instance
            unloaded = _resident_mib()
            largest = max(largest, unloaded / start)
            print(f"| {number} | {loaded:.0f} | {used:.0f} | {unloaded:.0f} | {unloaded / start:.3f} |", flush=True)
    small[0].retire()
    return largest


def under_requests(config_file: Path, *, requests: int) -> float:
    """Send a server so many requests, and return by how many MiB the last half of them made it grow."""
    document = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    document["store"]["path"] = str((config_file.parent / document["store"]["path"]).resolve())
    document["models"] = {MODEL: {**document["models"][MODEL], "tiers": list(TIERS)}}
    for name in ("calibration", "evaluation"):
        document["models"][MODEL][name]["file"] = str(
            (config_file.parent / document["models"][MODEL][name]["file"]).resolve()
        )
    document.pop("deployments", None)
    print("\n| requests | resident |\n|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "serveprune.yaml"
        config.write_text(yaml.safe_dump(document), encoding="utf-8")
        with ServerProcess(config) as server, ThreadPoolExecutor(CONNECTIONS) as clients:
            server.wait_open().wait_ready(MODEL)
            process, sizes, sent = psutil.Process(server.pid), {}, 0
            for share in (0.0, *CHECKPOINTS):
                until = round(requests * share)
                shares = np.array_split(np.arange(sent, until), CONNECTIONS)
                list(clients.map(lambda numbers: _send(server.url, numbers.tolist()), shares))
                sent = until
                sizes[share] = process.memory_info().rss / 2**20
                print(f"| {until} | {sizes[share]:.0f} |", flush=True)
    return sizes[1.0] - sizes[0.5]


def _artifact(config: ServePruneConfig, repository: VariantRepository, model: str, tier: str) -> Artifact:
    dense = repository.find_dense(config.model(model))
    found = dense
    if dense is not None and tier != DENSE:
        profile = config.profile(tier)
        assert profile is not None
        found = repository.find_tier(config.model(model), dense=dense, profile=profile)
    if found is None:
        raise SystemExit(f"the store lacks {model} {tier}; run `serveprune demo --check --folder ...` first")
    return found


def _load(repository: VariantRepository, artifacts: dict[str, Artifact], *, model: str) -> list[Instance]:
    instances: list[Instance] = []
    for tier, artifact in artifacts.items():
        dense = instances[0] if instances else None
        instances.append(repository.load(artifact, identity=(model, "1", tier), batches=BatchSettings(32), dense=dense))
    return instances


def _use(instances: Sequence[Instance], *, seed: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(RUNS):
        instance = instances[int(random.integers(len(instances)))]
        tokens = _tokens(random, rows=int(random.integers(1, 17)), length=int(random.integers(4, 129)))
        instance.run({spec.name: tokens[spec.name] for spec in instance.inputs})


def _tokens(random: np.random.Generator, *, rows: int, length: int) -> dict[str, Array]:
    """Make up the inputs of the sentence encoder, ``(rows, length)`` each."""
    mask = np.ones((rows, length), dtype=np.int64)
    return {
        "input_ids": random.integers(*VOCABULARY, (rows, length)),
        "attention_mask": mask,
        "token_type_ids": np.zeros_like(mask),
    }


def _send(url: str, numbers: Sequence[int]) -> None:
    with closing(httpx.Client(base_url=url, timeout=60, trust_env=False)) as client:
        for number in numbers:
            random = np.random.default_rng(number)
            tokens = _tokens(random, rows=int(random.integers(1, 5)), length=int(random.integers(4, 33)))
            inputs = [
                {"name": name, "datatype": "INT64", "shape": array.shape, "data": array.ravel().tolist()}
                for name, array in tokens.items()
            ]
            body = orjson.dumps({"inputs": inputs})
            tier = TIERS[int(random.integers(len(TIERS)))]
            client.post(f"/v2/models/{MODEL}@{tier}/infer", content=body).raise_for_status()


def _resident_mib() -> float:
    return psutil.Process(os.getpid()).memory_info().rss / 2**20


if __name__ == "__main__":
    main()
