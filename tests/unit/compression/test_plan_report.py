import pytest

from serveprune.compression.plan_report import CoupledAxis, PinnedWeight, PlanReport, Prediction, layer_label


def coupled(*weights: str) -> tuple[CoupledAxis, ...]:
    return tuple(CoupledAxis(weight=weight, axis=0, positions_per_unit=1) for weight in weights)


@pytest.mark.parametrize(
    ("name", "weights", "label"),
    [
        ("stem.weight", ("stem.weight", "stem.bias"), "stem"),
        ("val_88", ("val_88", "encoder.0.query.bias", "val_96"), "encoder.0.query"),
        ("onnx::MatMul_231", ("onnx::MatMul_231", "mlp.up.bias"), "mlp.up"),
        ("val_88", ("val_88", "val_96"), "val_88"),
        ("block1", ("block1",), "block1"),
        ("val_88:2", ("val_88", "encoder.0.key.bias"), "encoder.0.key:2"),
    ],
)
def test_layer_label_is_the_first_name_that_no_exporter_made_up(
    name: str, weights: tuple[str, ...], label: str
) -> None:
    assert layer_label(name, coupled(*weights)) == label


def test_pinned_by_reason_puts_nodes_of_one_operator_together_and_the_most_frequent_first() -> None:
    def pinned(weight: str, reason: str) -> PinnedWeight:
        return PinnedWeight(weight=weight, axis=0, width=4, reason=reason)

    report = PlanReport(
        model="net",
        tier="lean",
        passes=("prune",),
        planned_pass=1,
        target={"ratio": 0.5},
        structure="auto",
        importance="reconstruction",
        batch_size=8,
        threads=1,
        calibration_samples=2,
        learned_from="calibration set",
        predicted=Prediction(unit="multiplications", before=2, after=1),
        error=0.0,
        groups=(),
        blocks=(),
        left_whole=(),
        pinned=(
            pinned("out", "is an output of the graph"),
            pinned("a", "normalised as a whole by LayerNormalization norm_1"),
            pinned("b", "normalised as a whole by LayerNormalization norm_2"),
            pinned("c", "looked up by com.microsoft::EmbedLayerNormalization embed"),
        ),
        not_understood=(),
        warnings=(),
    )
    assert {reason: [axis.weight for axis in axes] for reason, axes in report.pinned_by_reason().items()} == {
        "normalised as a whole by LayerNormalization": ["a", "b"],
        "is an output of the graph": ["out"],
        "looked up by com.microsoft::EmbedLayerNormalization": ["c"],
    }
    assert next(iter(report.pinned_by_reason())) == "normalised as a whole by LayerNormalization"
