from unit.evaluation.test_gate import measurements

from serveprune.artifacts.manifest import Measurements
from serveprune.config.profile import GateConfig
from serveprune.evaluation.choice import choose


def on(backend: str, *, ratio: float, cosine: float = 0.99, more: dict[str, float] | None = None) -> Measurements:
    return measurements(ratio=ratio, cosine=cosine, more=more).model_copy(update={"backend": backend})


def names(*candidates: Measurements, gate: GateConfig | None = None) -> list[str]:
    return [each.backend for each in choose(candidates, gate or GateConfig(min_quality=0.95)).passing]


def test_faster_backend_comes_first() -> None:
    assert names(on("onnxruntime", ratio=0.5), on("openvino", ratio=0.4)) == ["openvino", "onnxruntime"]
    assert names(on("onnxruntime", ratio=0.4), on("openvino", ratio=0.5)) == ["onnxruntime", "openvino"]


def test_backend_measured_first_stays_first_when_the_other_is_hardly_faster() -> None:
    assert names(on("onnxruntime", ratio=0.5), on("openvino", ratio=0.495)) == ["onnxruntime", "openvino"]
    assert names(on("onnxruntime", ratio=0.5), on("openvino", ratio=0.485)) == ["openvino", "onnxruntime"]


def test_faster_backend_is_left_out_when_its_quality_does_not_pass() -> None:
    candidates = on("onnxruntime", ratio=0.5), on("openvino", ratio=0.2, cosine=0.9)
    assert names(*candidates) == ["onnxruntime"]
    assert choose(candidates, GateConfig(min_quality=0.95)).reasons == ()


def test_backend_changes_when_the_gate_does() -> None:
    candidates = on("onnxruntime", ratio=0.5, cosine=0.99), on("openvino", ratio=0.3, cosine=0.96)
    assert names(*candidates, gate=GateConfig(min_quality=0.95))[0] == "openvino"
    assert names(*candidates, gate=GateConfig(min_quality=0.97)) == ["onnxruntime"]


def test_backend_that_answers_nan_never_passes() -> None:
    broken = on("openvino", ratio=0.1, more={"finite_fraction": 0.5})
    assert names(on("onnxruntime", ratio=0.5), broken, gate=GateConfig()) == ["onnxruntime"]


def test_reasons_name_their_backend_when_none_passes() -> None:
    choice = choose(
        [on("onnxruntime", ratio=0.5, cosine=0.9), on("openvino", ratio=0.3, cosine=0.8)], GateConfig(min_quality=0.95)
    )
    assert choice.passing == ()
    assert [reason.partition(":")[0] for reason in choice.reasons] == ["onnxruntime", "openvino"]
    assert all("min_quality 0.95" in reason for reason in choice.reasons)


def test_reasons_name_no_backend_when_there_is_one() -> None:
    (reason,) = choose([on("onnxruntime", ratio=0.5, cosine=0.9)], GateConfig(min_quality=0.95)).reasons
    assert reason.startswith("cosine 0.9 is below")
