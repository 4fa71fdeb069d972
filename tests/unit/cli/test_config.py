import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from serveprune.cli.config import config_app

CONFIG = """\
profiles:
  int8:
    passes: [{quantize: {scheme: dynamic}}]
    gate: {min_quality: 0.97}
models:
  doubling:
    source: {onnx: doubling.onnx}
    calibration: {file: calibration.npz}
    tiers: [int8]
deployments:
  doubling: {default_tier: int8}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config, beside a graph that takes `x`, FP32 (batch, 4), and a calibration set that fits it."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubling", [x], [y])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "doubling.onnx"
    )
    np.savez(tmp_path / "calibration.npz", x=np.zeros((8, 4), dtype=np.float32))
    file = tmp_path / "serveprune.yaml"
    file.write_text(CONFIG)
    return file


def test_check_prints_ok_and_the_tiers_when_all_is_well(config: Path) -> None:
    result = CliRunner().invoke(config_app, ["check", str(config)], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    assert result.stdout.startswith("ok\n")
    assert lines == [
        ["doubling", "1", "onnx", "dense", "", ""],
        ["doubling", "1", "onnx", "int8 (default)", "quantize(dtype=int8, scheme=dynamic)", "min_quality 0.97"],
    ]


def test_check_prints_json_when_asked(config: Path) -> None:
    result = CliRunner().invoke(config_app, ["check", str(config), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "ok": True,
        "problems": [],
        "models": [
            {
                "name": "doubling",
                "version": "1",
                "source": "onnx",
                "policy": "fixed",
                "default_tier": "int8",
                "tiers": [
                    {"tier": "dense", "passes": [], "gate": {}},
                    {
                        "tier": "int8",
                        "passes": [
                            {"quantize": {"dtype": "int8", "scheme": "dynamic", "ignore": [], "keep_float": None}}
                        ],
                        "gate": {"min_quality": 0.97},
                    },
                ],
            }
        ],
    }


def test_check_prints_a_canary_and_who_serves_beside_it(config: Path) -> None:
    entries = "{stable: dense, canary: {tier: int8, steps: [{setWeight: 5}, {pause: 10m}]}}"
    config.write_text(CONFIG.replace("{default_tier: int8}", entries))
    result = CliRunner().invoke(config_app, ["check", str(config), "--json"])
    assert result.exit_code == 0
    (model,) = json.loads(result.stdout)["models"]
    assert (model["policy"], model["default_tier"], model["stable"]) == ("fixed", "dense", "dense")
    assert model["canary"] == {"tier": "int8", "steps": [{"setWeight": 5}, {"pause": {"duration": 600.0}}]}


def test_check_prints_every_problem_and_exits_2_when_the_file_is_wrong(config: Path) -> None:
    config.write_text(CONFIG.replace("int8]", "int4]").replace("calibration.npz", "none.npz"))
    result = CliRunner().invoke(config_app, ["check", str(config)])
    assert result.exit_code == 2
    assert result.stdout.splitlines() == [
        f"{config}:8: models.doubling.calibration.file: expected a file, but {config.parent}/none.npz does not exist",
        (
            f"{config}:9: models.doubling.tiers[0]: expected dense or the name of a profile, got 'int4'; "
            "did you mean `int8`? profiles: int8"
        ),
        (
            f"{config}:11: deployments.doubling.default_tier: expected a tier of doubling, got 'int8'; "
            "did you mean `int4`? tiers: dense, int4"
        ),
    ]
    assert result.stderr == f"3 problems in {config}\n"


def test_check_prints_problems_as_json_and_exits_2_when_asked(config: Path) -> None:
    config.write_text("models: {}\n")
    result = CliRunner().invoke(config_app, ["check", str(config), "--json"])
    assert result.exit_code == 2
    assert json.loads(result.stdout) == {
        "ok": False,
        "problems": [f"{config}:1: models: expected at least 1 entry, got an empty mapping"],
        "models": [],
    }


def test_check_reports_arrays_when_they_do_not_fit_the_graph(config: Path) -> None:
    np.savez(config.parent / "calibration.npz", x=np.zeros((8, 5), dtype=np.float32))
    result = CliRunner().invoke(config_app, ["check", str(config)])
    assert result.exit_code == 2
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"models.doubling.calibration: {config.parent}/calibration.npz: array 'x': expected ")


def test_check_reports_the_backend_when_its_package_is_absent(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text(CONFIG.replace("    tiers:", "    backend: openvino\n    tiers:"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    result = CliRunner().invoke(config_app, ["check", str(config)])
    assert result.exit_code == 2
    (line,) = result.stdout.splitlines()
    assert line.startswith("models.doubling.backend: expected the package openvino")


def test_schema_prints_the_json_schema() -> None:
    result = CliRunner().invoke(config_app, ["schema"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["title"] == "serveprune.yaml"
