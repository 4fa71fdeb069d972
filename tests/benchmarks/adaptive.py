"""Show what an adaptive deployment makes of bursty traffic, against every tier by itself.

    python tests/benchmarks/adaptive.py [--folder serveprune-demo] [--target-ms 150] [--seconds 40]

Serves MiniLM's tiers from a store (which it fills first, if it is empty) in a process of its own, on two cores that
the clients share, and sends texts of about 128 tokens in an open loop: at six tenths of what dense can do, swinging
between a fifth and twice of it, and in spikes of three times it. What dense can do is measured first, in the same run.
Every policy gets the same arrivals. A request is in time if its answer came within the target of the moment it was due.
Quality is the tiers' agreement with dense, as it was measured at build, averaged over the answers.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from arrivals import Rate, arrivals, constant, diurnal, spikes
from open_loop import Answered, closed_loop, drive
from timed_tiers import machine

from serveprune.cli.demo import lay_out

_MODEL = "minilm"
_TEXTS = 64
_WORDS = 100
_START_SECONDS = 1800.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy made of one trace."""

    requests: int
    answered: int
    in_time: int
    quality: float
    p50_ms: float
    p99_ms: float
    tiers: Mapping[str, int]


def main() -> None:
    """Serve, drive, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("serveprune-demo"))
    parser.add_argument("--target-ms", type=float, default=150.0)
    parser.add_argument("--seconds", type=float, default=40.0, help="of each trace")
    arguments = parser.parse_args()
    config = lay_out(arguments.folder)
    bodies = _bodies(arguments.folder)
    with _served(config, target_ms=arguments.target_ms) as address:
        tiers = _qualities(address)
        capacity = asyncio.run(closed_loop(address, _path(f"{_MODEL}@dense"), bodies, clients=8, seconds=10))
        print(
            f"{machine()}; target {arguments.target_ms:g} ms; dense answers {capacity:.1f} requests a second of about "
            f"128 tokens\n"
        )
        print("| trace | policy | requests | answered | in time | mean quality | p50 | p99 | tiers |")
        print("|---" * 9 + "|")
        traces: dict[str, Rate] = {
            "constant, 0.6x": constant(capacity),
            "diurnal, 0.2x to 2x": diurnal(capacity, period_seconds=arguments.seconds / 2),
            "spikes, 0.5x and 3x": spikes(capacity, every_seconds=arguments.seconds / 4, lasting_seconds=3),
        }
        together: dict[str, list[Answered]] = {}
        for seed, (name, rate) in enumerate(traces.items()):
            moments = arrivals(rate, seconds=arguments.seconds, seed=seed)
            for policy in ("adaptive", *tiers):
                model = _MODEL if policy == "adaptive" else f"{_MODEL}@{policy}"
                answers = asyncio.run(drive(address, _path(model), bodies, moments))
                together.setdefault(policy, []).extend(answers)
                print(f"| {name} | {policy} | {_row(answers, tiers, arguments.target_ms)} |", flush=True)
                time.sleep(2)
        for policy, answers in together.items():
            print(f"| all three | {policy} | {_row(answers, tiers, arguments.target_ms)} |")


def _bodies(folder: Path) -> list[bytes]:
    """Join evaluation sentences to texts of about 128 tokens."""
    lines = (folder / "sentences_evaluation.jsonl").read_text(encoding="utf-8").splitlines()
    words = " ".join(json.loads(line)["text"] for line in lines).split()
    texts = [" ".join(words[start : start + _WORDS]) for start in range(0, _TEXTS * _WORDS, _WORDS)]
    return [
        json.dumps({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}]}).encode()
        for text in texts
    ]


@contextmanager
def _served(config: Path, *, target_ms: float) -> Iterator[str]:
    """Serve MiniLM alone, adaptively, on free ports; yields the HTTP address once all its tiers are there."""
    document = yaml.safe_load(config.read_text())
    document["models"] = {_MODEL: document["models"][_MODEL]}
    document["deployments"] = {_MODEL: {"policy": "adaptive", "target_latency_ms": target_ms}}
    document["server"] = dict.fromkeys(("http", "grpc", "metrics"), "127.0.0.1:0")
    with tempfile.TemporaryDirectory() as scratch:
        adaptive = config.parent / "serveprune-adaptive.yaml"
        adaptive.write_text(yaml.safe_dump(document))
        endpoints = Path(scratch) / "endpoints.json"
        command = [sys.executable, "-m", "serveprune", "serve", str(adaptive), "--endpoints-file", str(endpoints)]
        with (Path(scratch) / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
            try:
                yield _wait_ready(server, endpoints)
            finally:
                server.terminate()


def _wait_ready(server: "subprocess.Popen[bytes]", endpoints: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        if endpoints.exists():
            address: str = json.loads(endpoints.read_text())["http"]
            if all(tier["state"] not in ("waiting", "building") for tier in _tiers(address)):
                return address
        time.sleep(0.2)
    raise RuntimeError("the server did not become ready; run `serveprune serve` on the folder to see why")


def _tiers(address: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"http://{address}/v2/models/{_MODEL}/tiers") as reply:
        tiers: list[dict[str, Any]] = json.load(reply)["tiers"]
    return tiers


def _qualities(address: str) -> dict[str, float]:
    """Return the quality of each tier that serves."""
    return {
        tier["tier"]: tier["quality"][tier["metric"]] if "metric" in tier else 1.0
        for tier in _tiers(address)
        if tier["state"] == "ready"
    }


def _path(model: str) -> str:
    return f"/v2/models/{model}/infer"


def _outcome(answers: Sequence[Answered], qualities: Mapping[str, float], *, target_seconds: float) -> Outcome:
    served = [answer for answer in answers if answer.status == 200]
    seconds = np.array([answer.seconds for answer in served]) * 1000
    return Outcome(
        requests=len(answers),
        answered=len(served),
        in_time=sum(answer.seconds <= target_seconds for answer in served),
        quality=float(np.mean([qualities[answer.tier] for answer in served])),
        p50_ms=float(np.percentile(seconds, 50)),
        p99_ms=float(np.percentile(seconds, 99)),
        tiers={tier: sum(answer.tier == tier for answer in served) for tier in qualities},
    )


def _row(answers: Sequence[Answered], qualities: Mapping[str, float], target_ms: float) -> str:
    outcome = _outcome(answers, qualities, target_seconds=target_ms / 1000)
    shares = ", ".join(f"{tier} {count / outcome.answered:.0%}" for tier, count in outcome.tiers.items() if count)
    return " | ".join(
        (
            str(outcome.requests),
            f"{outcome.answered / outcome.requests:.1%}",
            f"{outcome.in_time / outcome.answered:.1%}",
            f"{outcome.quality:.4f}",
            f"{outcome.p50_ms:.0f} ms",
            f"{outcome.p99_ms:.0f} ms",
            shares,
        )
    )


if __name__ == "__main__":
    main()
