"""Two Ray nodes on this machine, on loopback alone, and `serve run` for each file that standard input names.

`ray start` cannot start them: where it is told of more than one node it wants an address that others can reach. One
process for every `serve run` spares the start of an interpreter and of Ray each time.
"""

import os
import sys

from ray.cluster_utils import Cluster
from ray.serve.scripts import run

_STORE_BYTES = 100 * 2**20


def main() -> None:
    """Start them, say so, and say so again whenever a file was submitted; ends when standard input does."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray prints
    common = {"node_ip_address": "127.0.0.1", "object_store_memory": _STORE_BYTES, "memory": 4 * 2**30}
    head, other = map(int, sys.argv[1:])
    cluster = Cluster(initialize_head=True, head_node_args={**common, "num_cpus": head, "include_dashboard": False})
    try:
        cluster.add_node(**common, num_cpus=other, wait=False)
        cluster.wait_for_nodes()
        print("started", file=answers, flush=True)
        for line in sys.stdin:
            run.main(["--non-blocking", "--address", cluster.address, line.strip()], standalone_mode=False)
            print("submitted", file=answers, flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
