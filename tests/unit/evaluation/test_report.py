from unit.artifacts.artifact_factory import MEASUREMENTS, tier_manifest

from serveprune.evaluation.report import backend_rows, measurement_rows


def test_report_begins_with_the_backend_that_serves() -> None:
    assert measurement_rows(MEASUREMENTS)[0] == ("backend", "onnxruntime")


def test_report_lists_the_other_backends_and_why_one_is_missing() -> None:
    other = MEASUREMENTS.model_copy(update={"backend": "openvino"})
    manifest = tier_manifest({}, further_measurements=(other,), unmeasured_backends={"third": "it is made up"})
    assert backend_rows(manifest) == (
        ("with openvino", "cosine 0.9931, 2.00x, 5 ms, batch deviation 0.01"),
        ("with third", "not measured: it is made up"),
    )
