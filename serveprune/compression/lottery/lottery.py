"""The `lottery` pass: from labelled samples to a sparse network that learned as well as the dense one."""

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from serveprune.artifacts.digest import sha256_file, sha256_json
from serveprune.compression.lottery.draw import Drawing, Drawn
from serveprune.compression.lottery.report import LayerSparsity, LotteryReport
from serveprune.compression.lottery.samples import LotterySamples, Scores, class_scores
from serveprune.compression.passes import PassContext, PassReport, graph_digest
from serveprune.compression.pruning.preparation import prepare
from serveprune.config.lottery import LotteryOptions
from serveprune.errors import InvalidArgument
from serveprune.evaluation.dataset import Dataset
from serveprune.evaluation.task import Task, scored_outputs
from serveprune.graph.footprint import graph_record
from serveprune.graph.onnx_file import write_graph
from serveprune.graph.quantized import quantized_node

MASK_FILE = "ticket_mask.npz"


class LotteryPass:
    """Iterative magnitude pruning with rewinding (Frankle and Carbin, arXiv 1803.03635; Frankle et al., 1912.05671).

    With rewinding of the learning rate alone it is that of Renda et al. (2003.02389).
    """

    def apply(self, graph: Path, *, output: Path, context: PassContext) -> PassReport:
        """See `Pass.apply`."""
        options = context.options
        assert isinstance(options, LotteryOptions)
        _require_float(graph)
        samples = LotterySamples.of(context.calibration, held_out=options.held_out)
        model = prepare(graph, output=context.workspace / "prepared.onnx")

        def told(done: float, words: str) -> None:
            context.note(words)
            context.progress(done)

        drawing = Drawing(
            model,
            options,
            name=context.model_name,
            samples=samples,
            scores=_scores(model, graph),
            checkpoint=_checkpoint(graph, options, context),
            progress=told,
        )
        drawn = drawing.run()
        drawing.module.load_state_dict(drawn.state)
        drawing.module.write_back(model)
        write_graph(model, output)
        write_masks(drawn.masks, output.with_name(MASK_FILE))
        drawing.forget()
        report = _report(drawn, options, samples=samples, drawing=drawing)
        return PassReport(report.model_dump(mode="json"), files=(MASK_FILE,))


def write_masks(masks: Mapping[str, Tensor], path: Path) -> None:
    """Write bool arrays by the names of their weights, as `numpy.load` reads them; equal masks give equal bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, mask in masks.items():
            # Not `numpy.savez`, which takes names as arguments, where some are taken.
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, mask.numpy(), allow_pickle=False)


def _require_float(graph: Path) -> None:
    node = quantized_node(ir.load(graph))
    if node is not None:
        raise InvalidArgument(
            f"lottery: expected a graph of floats, for no gradients go through integers, got a quantized one "
            f"({node.op_type} {node.name or node.outputs[0].name}); start from the float model, and put `lottery` "
            "before `quantize`"
        )


def _scores(model: ir.Model, graph: Path) -> Scores:
    outputs = tuple(record.spec for record in graph_record(graph).outputs)
    found = scored_outputs(Task.CLASSIFICATION, outputs)
    if not found:
        named = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in outputs)
        raise InvalidArgument(f"lottery: expected an output with a score per class, (batch, classes), got {named}")
    return class_scores(model, found[0].name)


def _checkpoint(graph: Path, options: LotteryOptions, context: PassContext) -> Path | None:
    """Return where a lottery of this graph with these options and samples keeps what it has."""
    if context.cache is None or context.calibration is None:
        return None
    digest = sha256_json(
        {
            "revision": options.revision,
            "graph": graph_digest(graph),
            "options": options.model_dump(mode="json"),
            "files": {place: sha256_file(path) for place, path in options.files().items()},
            "samples": _digest(context.calibration),
            "torch": torch.__version__,
        }
    )
    return context.cache / f"lottery-{digest}"


def _digest(dataset: Dataset) -> str:
    digest = hashlib.sha256()
    for sample in dataset.digests():
        digest.update(sample)
    if dataset.labels is not None:
        digest.update(np.ascontiguousarray(dataset.labels).data)
    return digest.hexdigest()


def _report(drawn: Drawn, options: LotteryOptions, *, samples: LotterySamples, drawing: Drawing) -> LotteryReport:
    return LotteryReport(
        rewind=options.rewind.model_dump(mode="json", exclude_none=True),
        start=options.start,
        scope=options.scope,
        seed=options.training.seed,
        learned_samples=len(samples.learned),
        choosing_samples=len(samples.choosing),
        judged_samples=len(samples.judged),
        weights=sum(mask.numel() for mask in drawn.masks.values()),
        all_weights=sum(weight.numel() for weight in drawing.module.weights.values()),
        dense=drawn.dense,
        rounds=drawn.rounds,
        left=drawn.left,
        mask=MASK_FILE,
        layers=tuple(
            LayerSparsity(name=name, weights=mask.numel(), zeros=int((~mask).sum()))
            for name, mask in drawn.masks.items()
        ),
        kept_as_given=drawn.kept_as_given,
        warnings=drawn.warnings,
    )
