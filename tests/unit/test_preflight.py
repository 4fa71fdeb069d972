import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tokenizers import Tokenizer, models, pre_tokenizers
from unit.compression.graphs import convolutional_graph, embedding_graph, images

from serveprune.config.loading import load_config
from serveprune.preflight import check_datasets, check_packages, check_secrets

HUGGINGFACE = "source: {huggingface: encoder, task: feature-extraction, pooling: mean}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A graph that takes `x`, FP32 (batch, 4), and a folder of a text encoder, as far as it is looked at."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubling", [x], [y])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "doubling.onnx"
    )
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text('{"model_type": "bert", "max_position_embeddings": 16}')
    settings = {"tokenizer_class": "BertTokenizer", "model_input_names": ["input_ids", "attention_mask"]}
    (encoder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "red": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(encoder / "tokenizer.json"))
    return tmp_path


def check(folder: Path, entries: str) -> list[str]:
    """Problems of a config whose model `m` has these entries, with the folder cut off."""
    file = folder / "serveprune.yaml"
    file.write_text(f"models:\n  m:\n    {entries}\n")
    return [problem.replace(f"{folder}/", "") for problem in check_datasets(load_config(file))]


def save(file: Path, **arrays: object) -> None:
    np.savez(file, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})


def test_check_datasets_finds_nothing_when_arrays_and_texts_fit(folder: Path) -> None:
    save(folder / "fits.npz", x=np.zeros((3, 4), np.float32), label=[0, 1, 0])
    (folder / "fits.jsonl").write_text('{"text": "red"}\n{"inputs": {"input_ids": [2], "attention_mask": [1]}}\n')
    assert check(folder, "source: {onnx: doubling.onnx}\n    evaluation: {file: fits.npz}") == []
    assert check(folder, f"{HUGGINGFACE}\n    calibration: {{file: fits.jsonl}}") == []


def test_check_datasets_reports_arrays_of_both_sets_when_they_do_not_fit(folder: Path) -> None:
    save(folder / "wide.npz", x=np.zeros((3, 5), np.float32))
    save(folder / "other.npz", pixels=np.zeros((3, 4), np.float32))
    problems = check(
        folder, "source: {onnx: doubling.onnx}\n    calibration: {file: wide.npz}\n    evaluation: {file: other.npz}"
    )
    assert [problem.partition(": expected")[0] for problem in problems] == [
        "models.m.calibration: wide.npz: array 'x'",
        "models.m.evaluation: other.npz: array 'pixels'",
        "models.m.evaluation: other.npz",
    ]
    assert all("expected" in problem for problem in problems)


def test_check_datasets_reports_the_line_when_a_text_set_does_not_fit(folder: Path) -> None:
    (folder / "set.jsonl").write_text('{"text": "red"}\n{"text": 5}\n{"txt": "red"}\n{"text": \n')
    problems = check(folder, f"{HUGGINGFACE}\n    evaluation: {{file: set.jsonl}}")
    assert [problem.split(" ")[1] for problem in problems] == ["set.jsonl:2:", "set.jsonl:3:", "set.jsonl:4:"]
    assert all(problem.startswith("models.m.evaluation: ") for problem in problems)


def test_check_datasets_reports_texts_when_the_model_takes_none(folder: Path) -> None:
    (folder / "set.jsonl").write_text('{"text": "red"}\n')
    (problem,) = check(folder, "source: {onnx: doubling.onnx}\n    calibration: {file: set.jsonl}")
    assert problem.startswith("models.m.calibration: set.jsonl:1: ")


def test_check_datasets_reports_the_source_when_it_is_no_graph(folder: Path) -> None:
    content = (folder / "doubling.onnx").read_bytes()
    (folder / "doubling.onnx").write_bytes(content[: len(content) // 2])
    (problem,) = check(folder, "source: {onnx: doubling.onnx}")
    assert problem.startswith("models.m.source: ")
    assert "doubling.onnx" in problem


def test_check_datasets_reports_the_preprocessing_when_the_graph_does_not_take_it(folder: Path) -> None:
    (problem,) = check(folder, "source: {onnx: doubling.onnx}\n    preprocessing: {kind: image, size: 4}")
    assert problem.startswith("models.m.preprocessing: ")


def test_check_datasets_reports_the_tokenizer_when_it_is_none(folder: Path) -> None:
    (folder / "encoder" / "tokenizer.json").write_text("{}")
    (problem,) = check(folder, HUGGINGFACE)
    assert problem.startswith("models.m.preprocessing.tokenizer: ")


def check_tier(folder: Path, entries: str, *, scheme: str = "auto") -> list[str]:
    """As `check`, with a tier that quantizes."""
    file = folder / "serveprune.yaml"
    file.write_text(
        f"profiles:\n  int8: {{passes: [{{quantize: {{scheme: {scheme}}}}}]}}\n"
        f"models:\n  m:\n    tiers: [dense, int8]\n    {entries}\n"
    )
    return [problem.replace(f"{folder}/", "") for problem in check_datasets(load_config(file))]


def test_check_datasets_reports_a_missing_calibration_when_the_graph_needs_static_scales(folder: Path) -> None:
    convolutional_graph(folder / "net.onnx")
    np.savez(folder / "set.npz", image=images(4))
    net = "source: {onnx: net.onnx}\n    evaluation: {file: set.npz}"
    (problem,) = check_tier(folder, net)
    assert problem.startswith("models.m.calibration: expected a calibration set, because profile int8")
    assert check_tier(folder, net, scheme="dynamic") == []
    assert check_tier(folder, "source: {onnx: net.onnx}\n    calibration: {file: set.npz}") == []


def test_check_datasets_reports_a_tier_that_nothing_can_be_judged_on(folder: Path) -> None:
    for scheme in ("auto", "dynamic"):
        (problem,) = check_tier(folder, "source: {onnx: doubling.onnx}", scheme=scheme)
        assert problem.startswith("models.m.evaluation: expected a set to judge int8 on")
    assert check(folder, "source: {onnx: doubling.onnx}") == []


def test_check_datasets_reports_labels_that_are_missing_when_the_tier_learns_from_them(folder: Path) -> None:
    convolutional_graph(folder / "net.onnx")
    np.savez(folder / "unlabelled.npz", image=images(4))
    np.savez(folder / "labelled.npz", image=images(4), label=np.arange(4))
    profile = "profiles:\n  ticket: {passes: [{lottery: {}}]}\n"

    def problems(samples: str) -> list[str]:
        model = f"models:\n  m:\n    source: {{onnx: net.onnx}}\n    tiers: [dense, ticket]\n    {samples}\n"
        (folder / "serveprune.yaml").write_text(profile + model)
        return check_datasets(load_config(folder / "serveprune.yaml"))

    (problem,) = problems("calibration: {file: unlabelled.npz}")
    assert problem.startswith("models.m.calibration: expected labels in unlabelled.npz, because profile ticket")
    (problem,) = problems("evaluation: {file: labelled.npz}")
    assert problem.startswith("models.m.calibration: expected a labelled set, because profile ticket")
    assert problems("calibration: {file: labelled.npz}") == []


def test_check_datasets_wants_no_calibration_when_the_graph_takes_dynamic_scales(folder: Path) -> None:
    embedding_graph(folder / "text.onnx")
    np.savez(folder / "set.npz", input_ids=np.zeros((2, 5), np.int64))
    assert check_tier(folder, "source: {onnx: text.onnx}\n    evaluation: {file: set.npz}") == []


def test_check_datasets_passes_over_models_whose_inputs_only_an_import_can_tell(folder: Path) -> None:
    (folder / "program.pt2").write_bytes(b"")
    save(folder / "set.npz", anything=[1])
    assert check(folder, "source: {pt2: program.pt2}\n    calibration: {file: set.npz}") == []


def test_check_datasets_passes_over_everything_when_the_compressing_half_is_absent(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(folder / "wide.npz", x=np.zeros((3, 5), np.float32))
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else real(name))
    assert check(folder, "source: {onnx: doubling.onnx}\n    calibration: {file: wide.npz}") == []


def test_check_packages_reports_the_model_when_its_only_backend_is_absent(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def problems(backend: str) -> list[str]:
        file = folder / "serveprune.yaml"
        file.write_text(f"models:\n  m: {{source: {{onnx: doubling.onnx}}, backend: {backend}}}\n")
        return check_packages(load_config(file))

    assert problems("openvino") == []
    real = importlib.util.find_spec
    absent = ("openvino", "onnx")  # an installation that only serves needs what runs the model, too
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else real(name))
    (problem,) = problems("openvino")
    assert problem.startswith("models.m.backend: expected the package openvino")
    assert 'pip install "serveprune[openvino]"' in problem
    assert problems("auto") == problems("onnxruntime") == []


def test_preflight_imports_no_part_of_the_compressing_half() -> None:
    heavy = "{'torch', 'onnx', 'onnx_ir', 'transformers', 'serveprune.graph', 'serveprune.compression'}"
    code = f"import sys, serveprune.preflight; sys.exit(repr({heavy} & sys.modules.keys()))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.stderr.strip() == "set()"


def test_check_datasets_reports_samples_and_labels_that_are_missing_when_the_tier_distills(folder: Path) -> None:
    convolutional_graph(folder / "net.onnx")
    np.savez(folder / "unlabelled.npz", image=images(4))
    np.savez(folder / "labelled.npz", image=images(4), label=np.arange(4))

    def problems(options: str, samples: str) -> list[str]:
        profile = f"profiles:\n  learned: {{passes: [{{distill: {options}}}]}}\n"
        model = f"models:\n  m:\n    source: {{onnx: net.onnx}}\n    tiers: [dense, learned]\n    {samples}\n"
        (folder / "serveprune.yaml").write_text(profile + model)
        return check_datasets(load_config(folder / "serveprune.yaml"))

    (problem,) = problems("{}", "evaluation: {file: unlabelled.npz}")
    assert problem == (
        "models.m.calibration: expected a calibration set, because profile learned learns from it, got none"
    )
    assert problems("{}", "calibration: {file: unlabelled.npz}") == []
    (problem,) = problems("{losses: {labels: 1}}", "calibration: {file: unlabelled.npz}")
    assert problem.startswith("models.m.calibration: expected labels in unlabelled.npz, because profile learned")
    assert problems("{losses: {labels: 1}}", "calibration: {file: labelled.npz}") == []


def test_check_secrets_reports_certificate_and_tokens_at_once(folder: Path) -> None:
    (folder / "server.pem").write_text("nothing")
    (folder / "tokens").write_text("too-brief")
    server = "{tls: {certificate_file: server.pem, key_file: server.pem}, tokens: {file: tokens}}"
    file = folder / "serveprune.yaml"
    file.write_text(f"server: {server}\nmodels: {{m: {{source: {{onnx: doubling.onnx}}}}}}\n")

    certificate, tokens = check_secrets(load_config(file), environment={})
    assert certificate.startswith("server.tls.certificate_file: expected a certificate in PEM form, got none")
    assert tokens.startswith("server.tokens.file: ")
    assert "too-brief" not in tokens

    file.write_text("models: {m: {source: {onnx: doubling.onnx}}}\n")
    assert check_secrets(load_config(file), environment={}) == []


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"TOKEN": "long-enough-for-a-token"}, None),
        ({}, "server.admin.tokens.environment: expected the name of a variable that is set"),
        ({"TOKEN": ""}, "server.admin.tokens.environment: expected at least one token, got none"),
        ({"TOKEN": "too-brief"}, "server.admin.tokens.environment: line 1: expected a token of 16"),
    ],
)
def test_check_secrets_reports_tokens_of_operators_that_are_none(
    folder: Path, environment: dict[str, str], problem: str | None
) -> None:
    file = folder / "serveprune.yaml"
    server = "{admin: {tokens: {environment: TOKEN}}}"
    file.write_text(f"server: {server}\nmodels: {{m: {{source: {{onnx: doubling.onnx}}}}}}\n")
    found = check_secrets(load_config(file), environment=environment)
    assert len(found) == (problem is not None)
    assert problem is None or found[0].startswith(problem)
    assert "too-brief" not in "".join(found)


@pytest.mark.parametrize("absent", ["opentelemetry.sdk", "opentelemetry.exporter.otlp.proto"])
def test_check_packages_names_the_extra_when_traces_are_wanted_and_cannot_be_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, absent: str
) -> None:
    def problems(server: str) -> list[str]:
        file = folder / "serveprune.yaml"
        file.write_text(f"server: {server}\nmodels:\n  m: {{source: {{onnx: doubling.onnx}}}}\n")
        return check_packages(load_config(file))

    assert problems("{tracing: {}}") == []
    real = importlib.util.find_spec

    def find(name: str) -> object:
        if name == absent:
            raise ModuleNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    (problem,) = problems("{tracing: {}}")
    assert problem.startswith("server.tracing: expected the packages opentelemetry.sdk and")
    assert 'pip install "serveprune[tracing]"' in problem
    assert problems("{logs: {access: {}}}") == []
