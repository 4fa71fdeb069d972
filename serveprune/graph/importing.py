"""Registration: from any source to one ONNX graph that ONNX Runtime is known to run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serveprune.artifacts.manifest import GRAPH_FILE, GraphRecord
from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.backends.protocol import Session
from serveprune.config.model import (
    ArtifactSource,
    ExportedProgramSource,
    HuggingFaceSource,
    ModelConfig,
    OnnxSource,
    Preprocessing,
    TorchSource,
)
from serveprune.errors import BuildFailed, InvalidArgument, NotFound
from serveprune.graph.batch_axis import batch_axis_notes, free_batch_axis
from serveprune.graph.declared_preprocessing import store_preprocessing
from serveprune.graph.footprint import graph_record
from serveprune.graph.onnx_file import read_header, write_graph
from serveprune.graph.onnx_source import probe_inputs, read_onnx_source
from serveprune.graph.parity import measure_parity
from serveprune.graph.source_graph import SourceGraph


@dataclass(frozen=True, slots=True)
class ImportedGraph:
    """A model as it is stored: the graph beside it in ``model.onnx``.

    Attributes:
        preprocessing: Paths in it are relative to the folder.
        parity_max_abs_error: Against the source framework; ``None`` for a source that is ONNX already.
        notes: What was repaired or left out, for people.
    """

    graph: GraphRecord
    preprocessing: Preprocessing | None
    parity_max_abs_error: float | None
    notes: tuple[str, ...]


def import_model(model: ModelConfig, *, folder: Path, progress: Callable[[str, float], None]) -> ImportedGraph:
    """Write ``folder/model.onnx`` (weights beyond 1.5 GiB beside it) and the files of its preprocessing.

    Args:
        model: What is registered.
        folder: Empty.
        progress: Is told the stage and the fraction done, 0 to 1.

    Raises:
        InvalidArgument: The source cannot be served as it is; the message names the file and the reason.
        BuildFailed: Its framework runs it, but the exported graph does not, or answers differently.
    """
    progress("reading the source", 0.0)
    preprocessing, preprocessing_notes = store_preprocessing(model, folder=folder)
    source = _read_source(model, progress=progress)
    path = folder / GRAPH_FILE
    progress("writing the graph", 0.7)
    write_graph(source.model, path)
    progress("checking against the source", 0.8)
    session = _load(path, source)
    parity, batch_notes = _check(session, source, model, path=path)
    session.close()
    progress("done", 1.0)
    return ImportedGraph(
        graph=graph_record(path),
        preprocessing=preprocessing,
        parity_max_abs_error=parity,
        notes=(*source.notes, *preprocessing_notes, *batch_notes),
    )


def _read_source(model: ModelConfig, *, progress: Callable[[str, float], None]) -> SourceGraph:
    # Each variant brings its framework, which takes seconds to import; only the one that is needed is.
    match model.source:
        case OnnxSource() as onnx_source:
            return read_onnx_source(onnx_source)
        case HuggingFaceSource() as huggingface_source:
            from serveprune.graph.huggingface_source import read_huggingface_source

            return read_huggingface_source(model, huggingface_source, progress=progress)
        case TorchSource() as torch_source:
            from serveprune.graph.torch_source import read_torch_source

            return read_torch_source(torch_source, progress=progress)
        case ExportedProgramSource() as exported_program_source:
            from serveprune.graph.exported_program_source import read_exported_program_source

            return read_exported_program_source(exported_program_source, progress=progress)
        case ArtifactSource(artifact=key):
            raise NotFound(
                f"source.artifact: the store has no artifact {key}; have it imported again from the files it was "
                "imported from (serveprune compress), or name those as the source"
            )


def _load(path: Path, source: SourceGraph) -> Session:
    try:
        return OnnxRuntimeBackend().load(path)
    except InvalidArgument as error:
        reason = f"{source.label}: {error.message.removeprefix(f'{path.name}: ')}"
        if source.references:
            raise BuildFailed(reason) from error
        raise InvalidArgument(reason) from error


def _check(
    session: Session, source: SourceGraph, model: ModelConfig, *, path: Path
) -> tuple[float | None, tuple[str, ...]]:
    """Check the written graph against its source, or by running it; return the parity and notes."""
    inputs = probe_inputs(read_header(path), label=source.label)
    if source.references:
        fixed = any(isinstance(value.shape[0], int) for value in inputs)
        notes = batch_axis_notes(session, inputs, label=source.label) if fixed else ()
        return measure_parity(session, source.references, label=source.label), notes
    if all(value.shape[0] == 1 for value in inputs) and isinstance(model.source, OnnxSource):
        freed = free_batch_axis(source.model, inputs, session=session, path=path)
        if freed is not None:
            freed.close()
            return None, ("the batch axis was fixed at 1 and is dynamic now: each row's answer was checked",)
        write_graph(read_onnx_source(model.source).model, path)
    return None, batch_axis_notes(session, inputs, label=source.label)
