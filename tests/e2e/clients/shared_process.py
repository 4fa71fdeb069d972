"""tritonclient and serveprune's gRPC front end in one process: ``python shared_process.py ORDER ADDRESS``.

Both bring a protobuf package called ``inference``; a pool that both wrote to would end the process.
"""

import importlib
import sys

import numpy as np

MODULES = {"triton": "tritonclient.grpc", "serveprune": "serveprune.frontends.grpc.server"}


def main() -> None:
    order, address = sys.argv[1].split(","), sys.argv[2]
    for who in order:
        importlib.import_module(MODULES[who])
    import tritonclient.grpc as triton

    from serveprune.cli.client import GrpcClient
    from serveprune.oip.tensor import Tensor

    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    given = triton.InferInput("x", [2, 3], "FP32")
    given.set_data_from_numpy(array)
    assert np.array_equal(triton.InferenceServerClient(address).infer("identity_fp32", [given]).as_numpy("y"), array)
    answer = GrpcClient(address).infer("identity_fp32", [Tensor.of("x", array)], parameters={})
    assert np.array_equal(answer.outputs[0].array, array)
    print("both answered")


if __name__ == "__main__":
    main()
