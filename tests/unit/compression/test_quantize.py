import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError
from unit.compression.graphs import (
    convolutional_graph,
    elementwise_graph,
    embedding_graph,
    image_dataset,
    images,
    recurrent_graph,
    save,
)

from serveprune.artifacts.environment import cpu_identity, environment
from serveprune.backends.selection import load_backend
from serveprune.compression.passes import PassContext, PassReport, apply_pass
from serveprune.compression.quantization import preparation
from serveprune.compression.quantization.nncf_quantizer import has_attention
from serveprune.compression.quantization.quantize import needs_reduced_range
from serveprune.config.profile import QuantizeOptions
from serveprune.errors import BuildFailed, InvalidArgument, MissingExtra
from serveprune.evaluation.dataset import Dataset
from serveprune.graph.footprint import graph_record
from serveprune.oip.tensor import Array

Quantize = Callable[..., PassReport]

THIS_CPU = environment()["cpu"]
"""What is quantized for another one saturates here."""


@pytest.fixture
def quantize(tmp_path: Path) -> Quantize:
    def run(
        graph: Path,
        *,
        scheme: Literal["auto", "dynamic", "static", "nncf"] = "auto",
        ignore: tuple[str, ...] = (),
        keep_float: int | None = None,
        calibration: Dataset | None = None,
        cpu: str = THIS_CPU,
    ) -> PassReport:
        workspace = tmp_path / "workspace"
        workspace.mkdir()
        context = PassContext(
            options=QuantizeOptions(scheme=scheme, ignore=ignore, keep_float=keep_float),
            calibration=calibration,
            cpu=cpu,
            threads=1,
            seed=0,
            workspace=workspace,
            progress=lambda fraction: None,
        )
        return apply_pass("quantize", graph, output=tmp_path / "quantized.onnx", context=context)

    return run


def run(path: Path, **feeds: Array) -> Array:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    result: Array = session.run(None, feeds)[0]
    return result


def sqnr_db(reference: Array, approximation: Array) -> float:
    return float(10 * np.log10((reference**2).sum() / ((reference - approximation) ** 2).sum()))


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def fused_operators(path: Path) -> Counter[str]:
    """The operators ONNX Runtime will really run."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".fused.onnx"))
    options.log_severity_level = 3
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return operators(path.with_suffix(".fused.onnx"))


def integer_weights(path: Path, *, smallest: int = 64) -> list[Array]:
    arrays = [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    return [array for array in arrays if array.dtype == np.int8 and array.size > smallest]


def test_quantize_chooses_static_when_convolutions_do_the_work(quantize: Quantize, tmp_path: Path) -> None:
    graph = convolutional_graph(tmp_path / "model.onnx")
    report = quantize(graph, calibration=image_dataset(32))
    assert report.findings["scheme"] == "static"
    quantized = tmp_path / "quantized.onnx"
    assert "BatchNormalization" not in operators(quantized)
    fused = fused_operators(quantized)
    assert fused["Conv"] == 0
    assert fused["QLinearConv"] == 2
    held_out = images(16, seed=9)
    assert sqnr_db(run(graph, image=held_out), run(quantized, image=held_out)) > 20
    assert quantized.stat().st_size < 0.6 * graph.stat().st_size


def test_quantize_works_on_an_opset_without_per_channel_scales(quantize: Quantize, tmp_path: Path) -> None:
    graph = convolutional_graph(tmp_path / "model.onnx", opset=11)
    quantize(graph, calibration=image_dataset(16))
    held_out = images(8, seed=9)
    assert sqnr_db(run(graph, image=held_out), run(tmp_path / "quantized.onnx", image=held_out)) > 20


def test_quantize_chooses_dynamic_when_matrix_products_do_the_work(quantize: Quantize, tmp_path: Path) -> None:
    graph = embedding_graph(tmp_path / "model.onnx")
    report = quantize(graph)
    assert report.findings["scheme"] == "dynamic"
    quantized = tmp_path / "quantized.onnx"
    assert operators(quantized)["MatMulInteger"] == 2
    ids = np.random.default_rng(3).integers(0, 2000, (4, 11))
    assert sqnr_db(run(graph, input_ids=ids), run(quantized, input_ids=ids)) > 25
    # The embedding table too: four bytes to one.
    assert quantized.stat().st_size < 0.35 * graph.stat().st_size


def test_quantize_chooses_dynamic_when_the_net_is_recurrent(quantize: Quantize, tmp_path: Path) -> None:
    graph = recurrent_graph(tmp_path / "model.onnx")
    assert quantize(graph).findings["integer_operators"] == {"DynamicQuantizeLSTM": 1}
    steps = np.random.default_rng(3).normal(size=(7, 3, 32)).astype(np.float32)
    assert sqnr_db(run(graph, sequence=steps), run(tmp_path / "quantized.onnx", sequence=steps)) > 25


def test_quantize_never_makes_convolutions_dynamic(quantize: Quantize, tmp_path: Path) -> None:
    graph = convolutional_graph(tmp_path / "model.onnx")
    quantize(graph, scheme="dynamic")
    found = operators(tmp_path / "quantized.onnx")
    assert found["ConvInteger"] == 0
    assert found["MatMulInteger"] == 1


def test_quantize_names_the_keys_when_calibration_is_missing(quantize: Quantize, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"calibration\.file.*scheme: dynamic"):
        quantize(convolutional_graph(tmp_path / "model.onnx"))


def test_quantize_keeps_ignored_nodes_in_float(quantize: Quantize, tmp_path: Path) -> None:
    graph = convolutional_graph(tmp_path / "model.onnx")
    report = quantize(graph, ignore=("block/*",), calibration=image_dataset(16))
    assert "block/conv" in report.findings["ignored"]
    fused = fused_operators(tmp_path / "quantized.onnx")
    assert (fused["QLinearConv"], fused["Conv"]) == (1, 1)


def test_quantize_keeps_an_ignored_gemm_in_float_when_dynamic(quantize: Quantize, tmp_path: Path) -> None:
    graph = convolutional_graph(tmp_path / "model.onnx")
    with pytest.raises(BuildFailed, match="changed nothing"):
        quantize(graph, scheme="dynamic", ignore=("head",))


def test_quantize_names_the_pattern_when_it_matches_nothing(quantize: Quantize, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"'encoder\*'.*stem/conv"):
        quantize(convolutional_graph(tmp_path / "model.onnx"), ignore=("encoder*",), calibration=image_dataset(8))


def test_quantize_fails_when_there_is_nothing_to_quantize(quantize: Quantize, tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match="changed nothing"):
        quantize(elementwise_graph(tmp_path / "model.onnx"))


def test_quantize_refuses_a_graph_that_is_quantized_already(quantize: Quantize, tmp_path: Path) -> None:
    quantize(embedding_graph(tmp_path / "model.onnx"))
    context_free = (tmp_path / "quantized.onnx").rename(tmp_path / "first.onnx")
    (tmp_path / "workspace").rename(tmp_path / "first-workspace")
    with pytest.raises(InvalidArgument, match=r"quantized already.*MatMulInteger"):
        quantize(context_free)


@pytest.mark.parametrize("content", [b"", b"not onnx at all", b"\x08\x07"])
def test_quantize_refuses_a_damaged_file(quantize: Quantize, tmp_path: Path, content: bytes) -> None:
    graph = tmp_path / "model.onnx"
    graph.write_bytes(content)
    with pytest.raises(InvalidArgument):
        quantize(graph)


def test_quantize_leaves_masked_attention_in_float_when_static(quantize: Quantize, tmp_path: Path) -> None:
    # A mask of -inf has no finite range, and an integer scale for it would make every answer NaN.
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {
        "w": rng.normal(0, 0.1, (16, 16)).astype(np.float32),
        "minus_infinity": np.array(-np.inf, dtype=np.float32),
        "zero": np.array(0, dtype=np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["q"], name="project"),
        helper.make_node("Transpose", ["x"], ["k"], name="turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "k"], ["scores"], name="scores"),
        helper.make_node("Where", ["mask", "zero", "minus_infinity"], ["bias"], name="bias"),
        helper.make_node("Add", ["scores", "bias"], ["masked"], name="mask"),
        helper.make_node("Softmax", ["masked"], ["weights"], name="softmax"),
        helper.make_node("MatMul", ["weights", "x"], ["y"], name="mix"),
    ]
    graph = save(
        tmp_path / "model.onnx",
        nodes,
        weights,
        inputs={"x": (TensorProto.FLOAT, ["batch", 5, 16]), "mask": (TensorProto.BOOL, ["batch", 1, 5])},
        outputs={"y": ["batch", 5, 16]},
    )
    x = rng.normal(size=(8, 5, 16)).astype(np.float32)
    mask = np.ones((8, 1, 5), dtype=bool)
    mask[:, :, 3:] = False
    samples = Dataset(tuple({"x": one, "mask": seen} for one, seen in zip(x, mask, strict=True)))
    report = quantize(graph, scheme="static", calibration=samples)
    assert set(report.findings["left_in_float"]) >= {"mask", "scores", "mix"}
    assert sqnr_db(run(graph, x=x, mask=mask), run(tmp_path / "quantized.onnx", x=x, mask=mask)) > 25


def test_quantize_keeps_both_uses_right_when_gemms_share_a_weight(quantize: Quantize, tmp_path: Path) -> None:
    weights: dict[str, Array] = {"w": np.random.default_rng(0).normal(0, 0.25, (16, 16)).astype(np.float32)}
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["once"], name="first", transB=1),
        helper.make_node("Tanh", ["once"], ["active"], name="tanh"),
        helper.make_node("Gemm", ["active", "w"], ["y"], name="second", transB=1),
    ]
    graph = save(
        tmp_path / "model.onnx",
        nodes,
        weights,
        inputs={"x": (TensorProto.FLOAT, ["batch", 16])},
        outputs={"y": ["batch", 16]},
    )
    quantize(graph, scheme="dynamic")
    x = np.random.default_rng(1).normal(size=(4, 16)).astype(np.float32)
    assert sqnr_db(run(graph, x=x), run(tmp_path / "quantized.onnx", x=x)) > 25


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ("x86_64 avx avx2 fma", True),
        ("x86_64 avx2 avx512bw avx512f", True),
        ("x86_64 avx2 avx512_vnni avx512f", False),
        ("x86_64 avx2 avx_vnni", False),
        ("x86_64 amx_int8 avx2 avx512f", False),
        ("x86_64 avx sse4_1", False),
        ("aarch64 asimd asimddp", False),
        (cpu_identity("x86_64", "flags\t\t: fpu avx avx2 fma"), True),
    ],
)
def test_reduced_range_is_needed_when_int8_products_saturate(cpu: str, expected: bool) -> None:
    assert needs_reduced_range(cpu) is expected


@pytest.mark.parametrize(("cpu", "largest"), [("x86_64 avx2", 64), ("x86_64 avx2 avx_vnni", 127)])
def test_quantize_keeps_weights_to_seven_bits_when_the_cpu_saturates(
    quantize: Quantize, tmp_path: Path, cpu: str, largest: int
) -> None:
    quantize(convolutional_graph(tmp_path / "model.onnx"), calibration=image_dataset(8), cpu=cpu)
    weights = integer_weights(tmp_path / "quantized.onnx")
    assert len(weights) == 3
    assert max(int(np.abs(weight.astype(int)).max()) for weight in weights) == largest


def test_quantize_changes_neither_inputs_nor_outputs(quantize: Quantize, tmp_path: Path) -> None:
    graph = convolutional_graph(tmp_path / "model.onnx")
    quantize(graph, calibration=image_dataset(8))

    def interface(path: Path) -> list[Any]:
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return [(value.name, value.type, value.shape) for value in (*session.get_inputs(), *session.get_outputs())]

    assert interface(tmp_path / "quantized.onnx") == interface(graph)


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_quantize_keeps_weights_beside_the_graph_when_one_file_cannot_hold_them(
    quantize: Quantize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setattr(preparation, "MAX_EMBEDDED_BYTES", 10_000)
    graph = convolutional_graph(tmp_path / "model.onnx")
    quantize(graph, scheme=scheme, calibration=image_dataset(8))
    data = tmp_path / "quantized.onnx.data"
    assert data.stat().st_size > 9000
    folder = tmp_path / "moved"
    folder.mkdir()
    data.rename(folder / data.name)
    moved = (tmp_path / "quantized.onnx").rename(folder / "quantized.onnx")
    held_out = images(4, seed=9)
    assert sqnr_db(run(graph, image=held_out), run(moved, image=held_out)) > 20


@pytest.mark.parametrize("batched_product", [False, True])
def test_quantize_gives_answers_of_full_resolution_when_static(
    quantize: Quantize, tmp_path: Path, batched_product: bool
) -> None:
    graph = convolutional_graph(tmp_path / "model.onnx")
    if batched_product:
        model = onnx.load(graph)
        head = model.graph.node.pop()
        weight = next(tensor for tensor in model.graph.initializer if tensor.name == "head.weight")
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).T.copy(), weight.name))
        model.graph.node.extend(
            [
                helper.make_node("MatMul", head.input[:2], ["product"], name="head"),
                helper.make_node("Add", ["product", head.input[2]], ["biased"], name="bias"),
                helper.make_node("Softmax", ["biased"], ["logits"], name="softmax"),
            ]
        )
        onnx.save(model, graph)
    quantize(graph, calibration=image_dataset(16))
    quantized = tmp_path / "quantized.onnx"
    answers = run(quantized, image=images(100, seed=3))
    # 1,000 numbers; 8 bits would give 256 different ones at most.
    assert len(np.unique(answers)) > 900
    # The product itself is still one of integers.
    fused = fused_operators(quantized)
    assert fused["QGemm"] + fused["MatMulIntegerToFloat"] == 1
    assert fused["Gemm"] + fused["MatMul"] == 0
    stored = onnx.load(quantized).graph
    used = {name for node in stored.node for name in node.input}
    assert {tensor.name for tensor in stored.initializer} <= used


def fixed_at_one(path: Path) -> Path:
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, path)
    return path


def test_quantize_calibrates_row_by_row_when_the_batch_axis_is_fixed(quantize: Quantize, tmp_path: Path) -> None:
    graph = fixed_at_one(convolutional_graph(tmp_path / "model.onnx"))
    assert quantize(graph, calibration=image_dataset(12)).findings["calibration_samples"] == 12
    one = images(1, seed=9)
    assert sqnr_db(run(graph, image=one), run(tmp_path / "quantized.onnx", image=one)) > 20


def test_quantize_names_the_input_when_the_graph_cannot_compute_a_batch(quantize: Quantize, tmp_path: Path) -> None:
    # The declared shape is wider than what the graph takes.
    weights: dict[str, Array] = {"w": np.ones((4, 3, 3, 3), np.float32)}
    graph = save(
        tmp_path / "model.onnx",
        [helper.make_node("Conv", ["image", "w"], ["y"], name="conv")],
        weights,
        inputs={"image": (TensorProto.FLOAT, ["batch", "channels", 16, 16])},
        outputs={"y": ["batch", 4, 14, 14]},
    )
    samples = Dataset(tuple({"image": np.ones((5, 16, 16), np.float32)} for _ in range(2)))
    with pytest.raises(BuildFailed, match=r"calibration batch of image \[2, 5, 16, 16\]"):
        quantize(graph, calibration=samples)


def test_quantize_keeps_the_number_of_parameters_and_names_what_is_left_in_float(
    quantize: Quantize, tmp_path: Path
) -> None:
    graph = embedding_graph(tmp_path / "model.onnx")
    report = quantize(graph, ignore=("mlp/down",))
    assert report.findings["left_in_float"] == ["mlp/down"]
    # Scales and zero points describe weights and are none.
    assert graph_record(tmp_path / "quantized.onnx").parameters == graph_record(graph).parameters == 161_024


def test_quantize_names_convolutions_that_dynamic_scales_leave_in_float(quantize: Quantize, tmp_path: Path) -> None:
    report = quantize(convolutional_graph(tmp_path / "model.onnx"), scheme="dynamic")
    assert report.findings["left_in_float"] == ["block/conv", "stem/conv"]


def test_quantize_leaves_nothing_but_weights_in_the_count_when_static(quantize: Quantize, tmp_path: Path) -> None:
    quantize(convolutional_graph(tmp_path / "model.onnx"), calibration=image_dataset(8))
    # 3x32x9 and 32x32x9 with biases, 10x32 with bias: normalization is folded.
    assert graph_record(tmp_path / "quantized.onnx").parameters == 27 * 32 + 32 + 288 * 32 + 32 + 320 + 10


def test_quantize_keeps_the_most_sensitive_layers_in_float(quantize: Quantize, tmp_path: Path) -> None:
    graph, samples = convolutional_graph(tmp_path / "net.onnx"), image_dataset(16, seed=3)
    report = quantize(graph, keep_float=1, calibration=samples)
    (kept,) = report.findings["kept_float"]
    assert kept["error"] > 0
    assert report.findings["left_in_float"] == [kept["node"]]
    weights = [tensor for tensor in onnx.load(tmp_path / "quantized.onnx").graph.initializer if len(tensor.dims) > 1]
    assert [tensor.data_type for tensor in weights].count(TensorProto.INT8) == 2
    assert [tensor.data_type for tensor in weights].count(TensorProto.FLOAT) == 1


def test_quantize_refuses_to_keep_every_layer_in_float(quantize: Quantize, tmp_path: Path) -> None:
    graph = convolutional_graph(tmp_path / "net.onnx")
    with pytest.raises(InvalidArgument, match="keep_float 3 leaves nothing to quantize: 3 layers could be"):
        quantize(graph, keep_float=3, calibration=image_dataset(8, seed=3))


def test_quantize_says_that_keep_float_needs_calibration_data(quantize: Quantize, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="keep_float finds the most sensitive layers on calibration data"):
        quantize(embedding_graph(tmp_path / "net.onnx"), keep_float=1)


def test_nncf_leaves_one_graph_that_both_backends_run(quantize: Quantize, tmp_path: Path) -> None:
    graph = convolutional_graph(tmp_path / "net.onnx")
    report = quantize(graph, scheme="nncf", calibration=image_dataset(24))
    written = tmp_path / "quantized.onnx"
    assert report.findings["scheme"] == "nncf"
    assert report.findings["calibration_samples"] == 24
    assert written.stat().st_size < graph.stat().st_size
    batch = images(16, seed=5)
    dense = run(graph, image=batch)
    for name in ("onnxruntime", "openvino"):
        (answers,) = load_backend(name).load(written).run({"image": batch})
        assert sqnr_db(dense, answers) > 20


def test_nncf_answers_a_row_alike_in_any_company(quantize: Quantize, tmp_path: Path) -> None:
    quantize(convolutional_graph(tmp_path / "net.onnx"), scheme="nncf", calibration=image_dataset(24))
    batch = images(8, seed=5)
    alone = np.concatenate([run(tmp_path / "quantized.onnx", image=row[None]) for row in batch])
    together = run(tmp_path / "quantized.onnx", image=batch)
    assert np.abs(alone - together).max() <= 1e-4 * np.abs(together).max()


def test_nncf_leaves_ignored_nodes_in_float(quantize: Quantize, tmp_path: Path) -> None:
    graph = convolutional_graph(tmp_path / "net.onnx")
    report = quantize(graph, scheme="nncf", ignore=("stem/*",), calibration=image_dataset(8))
    assert report.findings["ignored"] == ["stem/conv", "stem/relu"]
    assert report.findings["left_in_float"] == ["stem/conv"]


def test_nncf_is_refused_when_there_is_no_calibration_set(quantize: Quantize, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="scheme nncf takes the ranges of activations from calibration data"):
        quantize(convolutional_graph(tmp_path / "net.onnx"), scheme="nncf")


def test_nncf_names_its_extra_when_it_is_missing(
    quantize: Quantize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingExtra, match=r'pip install "serveprune\[nncf\]"'):
        quantize(convolutional_graph(tmp_path / "net.onnx"), scheme="nncf", calibration=image_dataset(8))


def test_nncf_keeps_no_layers_by_number() -> None:
    with pytest.raises(ValidationError, match="expected none with scheme nncf"):
        QuantizeOptions(scheme="nncf", keep_float=2)


def test_attention_is_told_from_layers_with_weights(tmp_path: Path) -> None:
    assert not has_attention(onnx.load(embedding_graph(tmp_path / "text.onnx")))
    nodes = [helper.make_node("MatMul", ["x", "x"], ["y"], name="scores")]
    square = save(
        tmp_path / "scores.onnx",
        nodes,
        {},
        inputs={"x": (TensorProto.FLOAT, ["batch", 4, 4])},
        outputs={"y": ["batch", 4, 4]},
    )
    assert has_attention(onnx.load(square))
