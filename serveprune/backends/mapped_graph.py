"""Graphs whose weights several processes map from one file, instead of each holding a copy of its own.

ONNX Runtime copies weights that lie inside a graph's file, and then packs them for its kernels. It can write the
optimized graph with both beside it; a graph loaded from there maps them, so that processes share the pages.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from serveprune.artifacts.attachment import AttachmentRecord, sound_record, write_record
from serveprune.artifacts.digest import sha256_json
from serveprune.artifacts.environment import environment
from serveprune.artifacts.graph_file import is_compressed, read_graph
from serveprune.artifacts.store import ArtifactStore
from serveprune.backends.native_memory import give_back
from serveprune.backends.onnx_runtime import OnnxRuntimeBackend, OnnxRuntimeSession, session_options
from serveprune.errors import Internal, InvalidArgument
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import DYNAMIC, Array, TensorSpec

_log = logging.getLogger(__name__)

_REVISION = 1
"""Raised when forms that were written before are not to be used any more."""
_SMALLEST_BYTES = 2**20
"""Graphs below this size would save less than a mapping costs."""
_SMALLEST_WEIGHT_BYTES = 4096
"""Of one tensor: a page."""
_GRAPH_FILE = "model.onnx"
_WEIGHTS_FILE = "weights.bin"
_FILES = frozenset((_GRAPH_FILE, _WEIGHTS_FILE))
_MADE_UP_SIZE = 2
_PROVIDERS = ["CPUExecutionProvider"]


class MappedOnnxRuntimeBackend:
    """Runs graphs of a store with ONNX Runtime; the first process to load one writes the form that all map.

    A form lies in the artifact's own folder, so it is leased, counted and evicted together with it. It serves only
    if it gave, bit for bit, the answers of the graph it was made from. Where there can be none (a disk that is full
    or not to be written to, a graph that differs) the graph is loaded as ever.
    """

    name = OnnxRuntimeBackend.name

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._plain = OnnxRuntimeBackend()
        names = environment()
        kernels = {name: names[name] for name in ("onnxruntime", "cpu")}
        self._form_name = f"mapped-{sha256_json({**kernels, 'revision': _REVISION})[:16]}"

    def load(self, path: Path, *, threads: int = 1) -> OnnxRuntimeSession:
        """See `Backend.load`."""
        if _may_pay(path):
            try:
                form = self._form(path, threads=threads)
                if form is not None:
                    return _open_form(form, threads=threads)
            except Exception as error:  # ONNX Runtime raises a dozen unrelated types; the graph itself is sound
                _log.warning("%s: loaded without shared weights: %s", path.parent.name, error)
        return self._plain.load(path, threads=threads)

    def _form(self, path: Path, *, threads: int) -> Path | None:
        """Return the folder of the form, made if need be; ``None`` if the graph can have none."""
        key, folder = path.parent.name, path.parent / self._form_name
        # At first without the lock, for which a store that may only be read has no room.
        record = sound_record(folder, expected=_FILES)
        if record is None:
            with self._store.single_flight(f"{key}.{self._form_name}"):
                record = sound_record(folder, expected=_FILES) or self._make(path, key=key, threads=threads)
        if record.problem is not None:
            _log.info("%s: loaded without shared weights: %s", key, record.problem)
            return None
        return folder

    def _make(self, path: Path, *, key: str, threads: int) -> AttachmentRecord:
        with self._store.staging() as staging:
            record = write_record(staging, problem=_write_form(path, staging, threads=threads))
            self._store.attach(staging, key=key, name=self._form_name)
        # Of loading the graph the ordinary way.
        give_back()
        return record


def _may_pay(path: Path) -> bool:
    # What is compressed, or has its weights beside it, is larger than its file.
    beside = any(other.name.startswith(f"{path.name}.") for other in path.parent.iterdir())
    return beside or is_compressed(path) or path.stat().st_size >= _SMALLEST_BYTES


def _write_form(path: Path, folder: Path, *, threads: int) -> str | None:
    """Write the form of a graph, and return what is wrong with it."""
    options = session_options(threads)
    options.optimized_model_filepath = str(folder / _GRAPH_FILE)
    for name, value in (
        ("session.optimized_model_external_initializers_file_name", _WEIGHTS_FILE),
        ("session.optimized_model_external_initializers_min_size_in_bytes", str(_SMALLEST_WEIGHT_BYTES)),
        ("session.save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(name, value)
    graph = read_graph(path) if is_compressed(path) else str(path)
    original = OnnxRuntimeSession(ort.InferenceSession(graph, options, providers=_PROVIDERS))
    if not (folder / _WEIGHTS_FILE).exists():
        return "no weight of it is as large as a page"
    try:
        feeds = _made_up(original.inputs)
        expected = original.run(feeds)
    except (InvalidArgument, Internal) as error:
        return f"it cannot be tried with made-up inputs: {error.message}"
    came = _open_form(folder, threads=threads).run(feeds)
    equal = all(one.tobytes() == other.tobytes() for one, other in zip(expected, came, strict=True))
    return None if equal else "with mapped weights it gives other answers"


def _open_form(folder: Path, *, threads: int) -> OnnxRuntimeSession:
    options = session_options(threads)
    # It was optimized when it was written; doing it again could unshare weights.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return OnnxRuntimeSession(ort.InferenceSession(str(folder / _GRAPH_FILE), options, providers=_PROVIDERS))


def _made_up(specs: Sequence[TensorSpec]) -> dict[str, Array]:
    random = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for spec in specs:
        if spec.datatype is Datatype.BYTES:
            continue  # ONNX Runtime says that it is missing
        sizes = [_MADE_UP_SIZE if size == DYNAMIC else size for size in spec.shape]
        is_float = spec.datatype.dtype.kind == "f"
        # Ones are valid token ids, mask entries and flags alike.
        values: Any = random.uniform(-1.0, 1.0, sizes) if is_float else np.ones(sizes)
        feeds[spec.name] = values.astype(spec.datatype.dtype)
    return feeds
