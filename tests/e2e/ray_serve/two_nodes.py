"""Two Ray nodes on this machine, on loopback alone; ends when its standard input does.

`ray start` cannot do this: where it is told of more than one node it wants an address that others can reach.
"""

import sys

from ray.cluster_utils import Cluster

_STORE_BYTES = 100 * 2**20


def main() -> None:
    """Start them, say where the head is, and wait."""
    common = {"node_ip_address": "127.0.0.1", "object_store_memory": _STORE_BYTES, "memory": 4 * 2**30}
    head, other = map(int, sys.argv[1:])
    cluster = Cluster(initialize_head=True, head_node_args={**common, "num_cpus": head, "include_dashboard": False})
    try:
        cluster.add_node(**common, num_cpus=other)
        print(cluster.address, flush=True)
        sys.stdin.read()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
