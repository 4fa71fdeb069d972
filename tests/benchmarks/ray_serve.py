"""Print what Ray Serve costs on one small machine: the same model, store and load as one process of our own server.

    python tests/benchmarks/ray_serve.py [--rounds 3] [--seconds 4]

Needs `wrk`, and Ray (`serveprune[ray]`). Both hosts run from the same `serveprune.yaml`, loaded in turns, with the load
generator on the same cores: the ratio is what Ray's proxy, its ingress and its second hop take of them. On more than
one machine they would have cores of their own; this does not show that.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

import yaml
from load_generator import Load, http_load

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import numpy as np  # noqa: E402 - the folder of the tests has to be known first
from e2e.graphs import SLOW_WIDTH, write_slow_model  # noqa: E402
from e2e.ray_serve.hosted import HostedOnRay  # noqa: E402
from e2e.server_process import ServerProcess  # noqa: E402

CONNECTIONS = (1, 8, 32)
STEPS = (1, 1000, 10_000)
"""Of the slow model: what a request computes, from next to nothing to some tens of milliseconds."""


def main() -> None:
    """Serve, load, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_slow_model(folder / "slow.onnx")
        config = folder / "serveprune.yaml"
        document = {"store": {"path": "store"}, "models": {"slow": {"source": {"onnx": "slow.onnx"}}}}
        config.write_text(yaml.safe_dump(document), encoding="utf-8")
        scaling = {"*": {"min_replicas": 1, "max_replicas": 1}}
        with (
            ServerProcess(config) as alone,
            HostedOnRay(config, autoscaling=scaling, ingress={"num_cpus": 0.5}) as hosted,
        ):
            alone.wait_open().wait_ready("slow")
            hosted.deploy().wait_running().wait_ready("slow")
            _print_table({"our server": alone.url, "Ray Serve": str(hosted.http.base_url)}, arguments)


def _print_table(hosts: dict[str, str], arguments: argparse.Namespace) -> None:
    print(f"{os.cpu_count()} cores, medians of {arguments.rounds} rounds\n")
    print("| steps | connections | host | requests/s | p50 ms | p99 ms | against our server |")
    print("|---" * 7 + "|")
    for steps in STEPS:
        for connections in CONNECTIONS:
            rounds: dict[str, list[Load]] = {host: [] for host in hosts}
            for _ in range(arguments.rounds):
                for host, url in hosts.items():
                    rounds[host].append(
                        http_load(
                            f"{url.rstrip('/')}/v2/models/slow/infer",
                            [_body(steps)],
                            headers={"content-type": "application/json"},
                            connections=connections,
                            seconds=arguments.seconds,
                        )
                    )
            first = statistics.median(load.requests_per_second for load in rounds["our server"])
            for host, loads in rounds.items():
                errors = sum(load.errors for load in loads)
                if errors:
                    raise SystemExit(f"{host}: {errors} requests failed")
                rate, p50, p99 = (
                    statistics.median(getattr(load, name) for load in loads)
                    for name in ("requests_per_second", "p50_ms", "p99_ms")
                )
                print(
                    f"| {steps} | {connections} | {host} | {rate:,.0f} | {p50:.1f} | {p99:.1f} | {rate / first:.2f} |",
                    flush=True,
                )


def _body(steps: int) -> bytes:
    ones = ",".join(map(str, np.ones(SLOW_WIDTH, dtype=int)))
    return (
        f'{{"inputs":[{{"name":"steps","datatype":"INT64","shape":[1],"data":[{steps}]}},'
        f'{{"name":"x","datatype":"FP32","shape":[1,{SLOW_WIDTH}],"data":[{ones}]}}]}}'
    ).encode()


if __name__ == "__main__":
    main()
