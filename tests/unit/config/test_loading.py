from pathlib import Path

import pytest

from serveprune.config.loading import load_config, load_config_content, load_profile
from serveprune.config.model import HuggingFaceSource, ImagePreprocessing, OnnxSource, TextPreprocessing, TorchSource
from serveprune.config.profile import QuantizeOptions
from serveprune.config.server import Address
from serveprune.errors import Code, ConfigError

from .conftest import MODEL, Load, model


def test_load_config_reads_every_kind_of_source_with_absolute_paths(load: Load, folder: Path) -> None:
    config = load(
        """\
store: {path: ./cache, max_bytes: 1.5GiB}
server: {http: "127.0.0.1:0", grpc: "[::1]:8081"}
profiles:
  int8:
    passes: [{quantize: {dtype: int8, scheme: auto}}]
    gate: {min_quality: 0.97}
  plain:
    passes:
      - quantize:
models:
  graph: {source: {onnx: ./model.onnx}, evaluation: {file: evaluation.npz}}
  text:
    source: {huggingface: ./minilm, task: feature-extraction, pooling: mean, normalize: true}
    preprocessing: {kind: text, tokenizer: tokenizer.json}
    calibration: {file: calibration.jsonl, samples: 256}
    tiers: [int8, plain]
  module:
    source:
      torch: package.module:function
      weights: weights.safetensors
      inputs: [{name: x, shape: [batch, 3, 8, 8]}]
    preprocessing: {kind: image, size: [8, 8], mean: [0.5], std: [0.2, 0.3, 0.4]}
deployments:
  text: {default_tier: int8}
"""
    )
    assert config.store.path == folder / "cache"
    assert config.store.max_bytes == 1.5 * 2**30
    assert config.server.http == Address("127.0.0.1", 0)
    assert config.server.grpc == Address("::1", 8081)
    graph, text, module = config.models["graph"], config.models["text"], config.models["module"]
    assert graph.source == OnnxSource(onnx=folder / "model.onnx")
    assert graph.evaluation is not None
    assert graph.evaluation.file == folder / "evaluation.npz"
    assert isinstance(text.source, HuggingFaceSource)
    assert text.source.huggingface == folder / "minilm"
    assert text.preprocessing == TextPreprocessing(tokenizer=folder / "tokenizer.json")
    assert text.calibration is not None
    assert text.calibration.file == folder / "calibration.jsonl"
    assert isinstance(module.source, TorchSource)
    assert module.source.weights == folder / "weights.safetensors"
    assert module.source.inputs[0].shape == ("batch", 3, 8, 8)
    assert isinstance(module.preprocessing, ImagePreprocessing)
    assert module.preprocessing.size == (8, 8)
    assert config.profiles["plain"].passes[0].options == QuantizeOptions()
    assert config.deployment("text").default_tier == "int8"
    assert config.deployment("graph").default_tier == "dense"


def test_load_config_reads_an_adaptive_deployment(load: Load) -> None:
    entries = "min_quality: 0.95, target_latency_ms: 50, policy: adaptive"
    deployment = load(MODEL + f"deployments:\n  m: {{{entries}}}\n").deployment("m")
    assert (deployment.policy, deployment.target_latency_ms, deployment.min_quality) == ("adaptive", 50.0, 0.95)
    assert load(MODEL).deployment("m").policy == "fixed"


def test_load_config_puts_dense_first_wherever_the_tiers_name_it(load: Load) -> None:
    profiles = "profiles: {int8: {passes: [{quantize: {}}]}}\n"
    assert load(model("tiers: [int8]") + profiles).models["m"].tiers == ("dense", "int8")
    assert load(model("tiers: [int8, dense]") + profiles).models["m"].tiers == ("dense", "int8")


def test_load_config_places_the_default_store_beside_the_file(load: Load, folder: Path) -> None:
    assert load(MODEL).store.path == folder / ".serveprune"


def test_load_config_takes_paths_against_the_link_when_the_file_is_a_link(folder: Path, tmp_path: Path) -> None:
    # A mounted ConfigMap is a folder of links to files that lie elsewhere.
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "real.yaml").write_text(MODEL)
    link = folder / "serveprune.yaml"
    link.symlink_to(elsewhere / "real.yaml")
    assert load_config(link).models["m"].source == OnnxSource(onnx=folder / "model.onnx")


def test_load_config_makes_paths_absolute_when_its_own_is_relative(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "serveprune.yaml").write_text(MODEL)
    monkeypatch.chdir(folder)
    assert load_config(Path("serveprune.yaml")).models["m"].source == OnnxSource(onnx=folder / "model.onnx")


def test_load_config_expands_variables_of_the_environment(load: Load, folder: Path) -> None:
    config = load(
        "models: {m: {source: {onnx: '${HOME_OF_MODELS}/model.onnx'}, version: '${NOT_SET:-3}'}}\n"
        "server: {http: '127.0.0.1:${PORT}', executors: '${EMPTY:-2}'}\n"
    )
    assert config.models["m"].source == OnnxSource(onnx=folder / "model.onnx")
    assert config.models["m"].version == "3"
    assert config.server.http.port == 9000
    assert config.server.executors == 2


def test_load_config_takes_variables_of_the_process_when_no_environment_is_given(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVEPRUNE_TEST_VERSION", "7")
    file = folder / "serveprune.yaml"
    file.write_text("models: {m: {source: {onnx: model.onnx}, version: '${SERVEPRUNE_TEST_VERSION}'}}\n")
    assert load_config(file).models["m"].version == "7"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, ": expected a readable file, got: No such file or directory"),
        (b"models:\n  m: \xff\n", ":2: expected UTF-8 text, got the byte 0xFF"),
        (b"#" * (4 * 2**20 + 1), ": expected a file of at most 4194304 bytes, got more"),
    ],
    ids=["missing", "not UTF-8", "too large"],
)
def test_load_config_reports_the_file_when_it_cannot_be_read(
    content: bytes | None, expected: str, tmp_path: Path
) -> None:
    file = tmp_path / "serveprune.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert caught.value.problems == (f"{file}{expected}",)
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_load_config_reports_the_file_when_it_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path)
    assert caught.value.problems == (f"{tmp_path}: expected a readable file, got: Is a directory",)


def test_load_config_ignores_a_byte_order_mark(folder: Path) -> None:
    file = folder / "serveprune.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + MODEL.encode())
    assert set(load_config(file).models) == {"m"}


def test_load_config_content_reads_what_would_lie_in_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    content = b"\xef\xbb\xbf" + MODEL.encode()
    config = load_config_content(content, name="<stdin>", folder=Path(folder.name), environment={})
    assert config.models["m"].source == OnnxSource(onnx=folder / "model.onnx")
    assert config.store.path == folder / ".serveprune"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"models: {}\n", "<stdin>:1: models: expected at least 1 entry, got an empty mapping"),
        (b"models:\n  m: \xff\n", "<stdin>:2: expected UTF-8 text, got the byte 0xFF"),
        (b"#" * (4 * 2**20 + 1), "<stdin>: expected a file of at most 4194304 bytes, got more"),
    ],
    ids=["invalid", "not UTF-8", "too large"],
)
def test_load_config_content_reports_problems_under_the_name(content: bytes, expected: str, folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config_content(content, name="<stdin>", folder=folder)
    assert caught.value.problems == (expected,)


def test_load_profile_reads_one_profile(tmp_path: Path) -> None:
    file = tmp_path / "int8.yaml"
    file.write_text("passes:\n  - quantize: {scheme: dynamic}\ngate: {min_quality: 0.9}\n")
    profile = load_profile(file)
    assert profile.passes[0].options == QuantizeOptions(scheme="dynamic")
    assert profile.gate.min_quality == 0.9


def test_load_profile_reports_every_problem_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "int8.yaml"
    file.write_text("passes:\n  - quantize: {scheme: dynamical}\ngates: {}\n")
    with pytest.raises(ConfigError) as caught:
        load_profile(file)
    assert caught.value.problems == (
        (
            f"{file}:2: passes[0].quantize.scheme: expected one of auto, dynamic, static, nncf, got 'dynamical'; "
            "did you mean `dynamic`?"
        ),
        f"{file}:3: gates: unknown key; did you mean `gate`? known keys: passes, gate",
    )
