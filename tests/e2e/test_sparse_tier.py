"""A tier whose graph lies compressed in the store, from a server's build to its answers, and after damage."""

from pathlib import Path

import numpy as np
from contract.cases import Case, WireTensor
from contract.http.messages import binary_message, path

from e2e.conftest import Serve
from e2e.deployment import FASHION, fashion_images, write_fashion
from e2e.server_process import ServerProcess
from serveprune.artifacts.graph_file import read_graph
from serveprune.artifacts.manifest import COMPRESSED_GRAPH_FILE
from serveprune.oip.tensor import Array

SPARSE = {"passes": [{"prune": {"structure": "weights", "importance": "magnitude", "pattern": "2:4"}}]}
SECTIONS = {
    "profiles": {"sparse": SPARSE},
    "models": {"fashion": {**FASHION, "tiers": ["dense", "sparse"]}},
}


def logits(server: ServerProcess, images: Array) -> Array:
    case = Case("", "fashion@sparse", (WireTensor.of("image", images),), parameters={"strict_tier": True})
    body, headers = binary_message(case)
    answer = server.http.post(path(case), content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-compression-tier"] == "sparse"
    start = int(answer.headers["inference-header-content-length"])
    return np.frombuffer(answer.content[start:], np.float32).reshape(len(images), -1)


def test_compressed_tier_is_served_and_built_anew_when_its_file_is_damaged(
    serve: Serve, dense_store: Path, tmp_path: Path
) -> None:
    import onnxruntime as ort

    config = write_fashion(tmp_path, stored=dense_store, **SECTIONS)
    server = serve(config).wait_open()
    built = server.wait_state("fashion", "sparse", "ready")
    images = fashion_images(tmp_path, 3)
    first = logits(server, images)
    (stored,) = (tmp_path / "store" / "artifacts").glob(f"*/{COMPRESSED_GRAPH_FILE}")
    assert built["bytes"] == stored.stat().st_size < 0.6 * server.tiers("fashion")["dense"]["bytes"]
    expected = ort.InferenceSession(read_graph(stored)).run(None, {"image": images})[0]
    np.testing.assert_allclose(first, expected, atol=1e-4)
    assert server.stop() == 0

    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 0xFF
    stored.write_bytes(bytes(content))
    again = serve(config).wait_open()
    again.wait_state("fashion", "sparse", "ready")
    np.testing.assert_allclose(logits(again, images), expected, atol=1e-4)
    assert any((tmp_path / "store" / "quarantine").rglob(COMPRESSED_GRAPH_FILE))
    assert again.metric("serveprune_builds_total", tier="sparse", outcome="built") == 1
