"""What int8 in one layer alone does to the answers: measured once per graph, kept in the store."""

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from serveprune.artifacts.digest import sha256_file, sha256_json
from serveprune.artifacts.environment import environment
from serveprune.compression.answer_errors import AnswerErrors
from serveprune.compression.quantization.layers import Layer
from serveprune.compression.quantization.quantizer import Quantizer
from serveprune.compression.quantization.scheme import Scheme
from serveprune.evaluation.dataset import Dataset

_log = logging.getLogger(__name__)

_REVISION = 1
"""Part of every key: raised when errors would be measured differently."""

ERROR_SAMPLES = 64
"""Samples of the calibration set whose answers are compared."""


class LayerErrors:
    """Share of the answers' energy that is lost when one layer is quantized and all others stay in float.

    Seen on the first samples of the calibration set, so a pass may choose by it; the evaluation set is not looked at.
    """

    def __init__(
        self, folder: Path | None, *, graph: Path, scheme: Scheme, reduce_range: bool, calibration: Dataset
    ) -> None:
        """Name the entry by everything the errors depend on.

        Args:
            folder: Where entries are, such as ``PassContext.cache``; ``None`` keeps none.
            graph: The float graph, before it is prepared.
            scheme: Where the scales of activations come from.
            reduce_range: Weights keep to 7 bits.
            calibration: Samples that scales and errors are taken from.
        """
        recipe = {
            "layer_errors": _REVISION,
            "graph": sha256_file(graph),
            "scheme": scheme,
            "reduce_range": reduce_range,
            "samples": [digest.hex() for digest in calibration.digests()],
            "environment": environment(),
        }
        self._path = None if folder is None else folder / f"{sha256_json(recipe)}.json"

    def read(self) -> dict[str, float] | None:
        """Return the error of each layer by its node's name, if a build or `serveprune sensitivity` left them here."""
        if self._path is None:
            return None
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))["layer_errors"]
            errors = {str(node): float(error) for node, error in found.items()}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("the layer errors in %s cannot be read and are measured anew: %s", self._path, error)
            return None
        return errors if all(map(math.isfinite, errors.values())) else None

    def write(self, errors: Mapping[str, float]) -> None:
        """Keep the errors, whole or not at all."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Another build may write the same entry; each is whole when it gets its name.
        draft = self._path.with_suffix(f".{os.getpid()}.draft")
        draft.write_text(json.dumps({"layer_errors": dict(errors)}), encoding="utf-8")
        draft.replace(self._path)

    def obtain(
        self,
        quantizer: Quantizer,
        layers: Sequence[Layer],
        *,
        prepared: Path,
        samples: Dataset,
        workspace: Path,
        threads: int,
        progress: Callable[[float], None] = lambda fraction: None,
    ) -> dict[str, float]:
        """Return the errors, measured now if nobody has measured them.

        Args:
            quantizer: Of the graph.
            layers: What to ask about.
            prepared: The float graph that the quantizer was made for.
            samples: Unlabelled samples, of which the first are used.
            workspace: For graphs that lie between.
            threads: Compute threads.
            progress: Takes the done fraction.
        """
        known = self.read()
        if known is not None and all(layer.node in known for layer in layers):
            return known
        answers = AnswerErrors(prepared, samples=samples.head(ERROR_SAMPLES), threads=threads)
        path = workspace / "one_layer.onnx"
        found = {}
        for index, layer in enumerate(layers):
            quantizer.write(path, ignored=all_but(layer, quantizer))
            error = answers.of(path)
            # A graph that gives NaN has lost everything, and JSON knows no NaN.
            found[layer.node] = error if math.isfinite(error) else 1.0
            progress((index + 1) / len(layers))
        self.write(found)
        return found


def all_but(layer: Layer, quantizer: Quantizer) -> frozenset[str]:
    """Return the names of the nodes that stay in float when only this layer is quantized."""
    return frozenset(node.name for node in quantizer.model.graph.node) - layer.quantized_nodes
