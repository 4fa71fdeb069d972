from typing import Any

from serveprune.cli.tier_table import shown_names, tier_row, tier_table

INT8: dict[str, Any] = {
    "tier": "int8",
    "state": "ready",
    "reasons": [],
    "progress": None,
    "bytes": 2**20,
    "built_here": True,
    "backend": "openvino",
    "metric": "cosine",
    "quality": {"cosine": 0.99},
    "dense_quality": {},
    "speedup": 3.0,
    "latency_ms": {"dense": 30.0, "tier": 10.0},
    "latency_batch_size": 8,
    "backends": {"onnxruntime": {"speedup": 2.0}, "openvino": {"speedup": 3.0}},
}


def test_row_names_the_backend_and_how_fast_the_other_was() -> None:
    cells = tier_row(INT8, [INT8])
    assert "openvino (onnxruntime 2.00x)" in cells
    assert "3.00x" in cells


def test_row_says_so_when_the_other_backend_could_not_be_measured() -> None:
    tier = INT8 | {
        "backend": "onnxruntime",
        "backends": {"onnxruntime": {"speedup": 2.0}, "openvino": {"not_measured": "x"}},
    }
    assert "onnxruntime (openvino failed)" in tier_row(tier, [tier])


def test_row_of_an_earlier_server_has_no_backend() -> None:
    tier = {name: value for name, value in INT8.items() if name not in ("backend", "backends")}
    assert "" in tier_row(tier, [tier])


def test_table_has_a_cell_for_every_column() -> None:
    table = tier_table([{"name": "minilm", "version": "1", "tiers": [INT8]}])
    assert [str(column.header) for column in table.columns].index("backend") == 3
    assert len(tier_row(INT8, [INT8])) == len(table.columns) - 1


def test_versions_are_shown_where_there_are_several() -> None:
    models = [{"name": name, "version": version} for name, version in (("a", "1"), ("b", "1"), ("b", "2"))]
    assert list(shown_names(models).values()) == ["a", "b 1", "b 2"]
