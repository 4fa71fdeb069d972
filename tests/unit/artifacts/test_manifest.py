import json

from unit.artifacts.artifact_factory import MEASUREMENTS, tier_manifest

from serveprune.artifacts.manifest import Manifest


def test_manifest_of_an_earlier_version_means_onnx_runtime() -> None:
    document = json.loads(tier_manifest({}).model_dump_json())
    for name in ("further_measurements", "unmeasured_backends"):
        del document[name]
    del document["measurements"]["backend"]
    manifest = Manifest.model_validate_json(json.dumps(document))
    assert [each.backend for each in manifest.all_measurements] == ["onnxruntime"]
    assert manifest.unmeasured_backends == {}


def test_measurements_of_every_backend_come_back_from_json() -> None:
    other = MEASUREMENTS.model_copy(update={"backend": "openvino", "batch_deviation": 0.0})
    manifest = tier_manifest({}, further_measurements=(other,), unmeasured_backends={"third": "it is made up"})
    read = Manifest.model_validate_json(manifest.model_dump_json())
    assert read == manifest
    assert [each.backend for each in read.all_measurements] == ["onnxruntime", "openvino"]


def test_manifest_leads_with_the_measurements_that_hold() -> None:
    other = MEASUREMENTS.model_copy(update={"backend": "openvino"})
    manifest = tier_manifest({}, further_measurements=(other,))
    led = manifest.led_by(other)
    assert led.measurements == other
    assert led.further_measurements == (MEASUREMENTS,)
    assert manifest.led_by(MEASUREMENTS) == manifest
