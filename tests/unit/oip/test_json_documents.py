from serveprune.oip.datatype import Datatype
from serveprune.oip.json_documents import (
    model_metadata_document,
    repository_index_document,
    server_metadata_document,
)
from serveprune.oip.messages import ModelMetadata, ModelState, RepositoryEntry, ServerMetadata
from serveprune.oip.tensor import TensorSpec


def test_server_metadata_has_the_fields_of_the_protocol() -> None:
    assert server_metadata_document(ServerMetadata("s", "1.2", ("binary_tensor_data",))) == {
        "name": "s",
        "version": "1.2",
        "extensions": ["binary_tensor_data"],
    }


def test_model_metadata_has_the_fields_of_the_protocol() -> None:
    metadata = ModelMetadata(
        "m@int8",
        ("1",),
        "onnxruntime_onnx",
        (TensorSpec("x", Datatype.INT64, (-1, -1)),),
        (TensorSpec("y", Datatype.FP32, (-1, 384)),),
        {"tier": "int8"},
    )

    assert model_metadata_document(metadata) == {
        "name": "m@int8",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "INT64", "shape": [-1, -1]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 384]}],
        "properties": {"tier": "int8"},
    }


def test_repository_index_is_a_list_of_entries() -> None:
    entries = [RepositoryEntry("m", "1", ModelState.UNAVAILABLE, "refused by the gate")]

    assert repository_index_document(entries) == [
        {"name": "m", "version": "1", "state": "UNAVAILABLE", "reason": "refused by the gate"}
    ]
