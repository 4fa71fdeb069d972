"""Print how long a graph takes to learn, forward and backward, against the same network written in torch.

    python tests/benchmarks/executor.py [--models minilm,fashion,efficientnet] [--rounds 15] [--threads 1]

Both compute the same outputs, and gradients for all weights, of the same batch; they take turns, in random order, and
the medians of all rounds are compared. The networks: transformers' BertModel in evaluation mode with the pooling of
the demo, the demo's own definition of its image classifier, and the package of EfficientNet-Lite0 (see
`efficientnet.py`), both in training mode. The differences say that it is the same network.
"""

import argparse
import importlib.util
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import efficientnet
import numpy as np
import onnx_ir as ir
import torch
import transformers
from torch import Tensor, nn

from serveprune.cli.demo import lay_out
from serveprune.config.loading import load_config
from serveprune.config.model import HuggingFaceSource, ModelConfig
from serveprune.graph.executor.graph_module import GraphModule
from serveprune.graph.importing import import_model
from serveprune.graph.pooling import TokenPooling

TOKENS = 128
VOCABULARY = 30522
MOST_RATIO = 1.3


@dataclass(frozen=True, slots=True)
class Subject:
    """A network written in torch, the same as a graph, and a batch."""

    network: nn.Module
    graph: Path
    feeds: Mapping[str, Tensor]
    training: bool


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(SUBJECTS), help="Which of them, with commas between.")
    parser.add_argument("--rounds", type=int, default=15, help="How often each is computed.")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| model | torch forward | ratio | torch forward and backward | ratio | outputs differ | gradients differ |")
    print("|---|---|---|---|---|---|---|", flush=True)
    slow = []
    for name in arguments.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            cells, ratio = row(SUBJECTS[name](Path(folder)), rounds=arguments.rounds)
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
        if ratio > MOST_RATIO:
            slow.append(f"{name} {ratio:.2f}x")
    if slow:
        raise SystemExit(f"slower than {MOST_RATIO}x of torch: {', '.join(slow)}")


def row(subject: Subject, *, rounds: int) -> tuple[list[str], float]:
    """Return the cells of one model, and the ratio of a step forward and backward."""
    module = GraphModule(ir.load(subject.graph), name=subject.graph.stem).train(subject.training)
    network = subject.network.train(subject.training)
    (output,) = module.outputs

    def graph() -> Tensor:
        made: Tensor = module(subject.feeds)[output]
        return made

    def written() -> Tensor:
        made: Tensor = network(**subject.feeds)
        return made

    torch.manual_seed(0)
    direction = torch.randn_like(written())
    forward = medians(written, graph, rounds=rounds)
    step = medians(
        lambda: torch.autograd.backward(written(), direction),
        lambda: torch.autograd.backward(graph(), direction),
        rounds=rounds,
    )
    differences = _differences(network, module, written, graph, direction)
    cells = [
        f"{forward[0] * 1000:.1f} ms",
        f"{forward[1] / forward[0]:.2f}x",
        f"{step[0] * 1000:.1f} ms",
        f"**{step[1] / step[0]:.2f}x**",
        *(f"{each:.0e}" for each in differences),
    ]
    return cells, step[1] / step[0]


def medians(first: Callable[[], object], second: Callable[[], object], *, rounds: int) -> tuple[float, float]:
    """Return the median seconds of two things that take turns."""
    order = random.Random(0)
    times: tuple[list[float], list[float]] = ([], [])
    for count in range(rounds + 2):
        pairs = [(first, times[0]), (second, times[1])]
        order.shuffle(pairs)
        for call, found in pairs:
            started = time.perf_counter()
            call()
            if count >= 2:
                found.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def _differences(
    network: nn.Module,
    module: GraphModule,
    written: Callable[[], Tensor],
    graph: Callable[[], Tensor],
    direction: Tensor,
) -> tuple[float, float]:
    """Return the largest difference of outputs, and the relative one of all gradients' norms."""
    made, norms = [], []
    for owner, call in ((network, written), (module, graph)):
        owner.zero_grad()
        made.append(call())
        torch.autograd.backward(made[-1], direction)
        gradients = [each.grad for each in owner.parameters() if each.grad is not None]
        norms.append(float(torch.linalg.vector_norm(torch.stack([each.double().norm() for each in gradients]))))
    return float((made[0] - made[1]).detach().abs().max()), abs(norms[1] / norms[0] - 1)


class _SentenceEncoder(nn.Module):
    def __init__(self, source: HuggingFaceSource) -> None:
        super().__init__()
        self.model = transformers.AutoModel.from_pretrained(source.huggingface, local_files_only=True)
        self.head = TokenPooling(source.pooling, normalize=source.normalize)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the embeddings, ``(N, 384)``."""
        made = self.model(input_ids=input_ids, token_type_ids=token_type_ids, attention_mask=attention_mask)
        pooled: Tensor = self.head(made.last_hidden_state, attention_mask)
        return pooled


def minilm(folder: Path) -> Subject:
    """The sentence encoder of the demo, 8 texts of 128 tokens."""
    config = load_config(lay_out(folder / "demo")).model("minilm")
    import_model(config, folder=folder, progress=lambda share, what: None)
    assert isinstance(config.source, HuggingFaceSource)
    tokens = torch.randint(1000, VOCABULARY, (8, TOKENS), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[::2, TOKENS // 2 :] = 0
    feeds = {"input_ids": tokens, "token_type_ids": torch.zeros_like(tokens), "attention_mask": mask}
    return Subject(_SentenceEncoder(config.source), folder / "model.onnx", feeds, training=False)


def fashion(folder: Path) -> Subject:
    """The image classifier of the demo, 64 images."""
    root = Path(__file__).parents[2]
    spec = importlib.util.spec_from_file_location("fashion", root / "deploy/demo/train_fashion_network.py")
    assert spec is not None
    assert spec.loader is not None
    definition = importlib.util.module_from_spec(spec)
    sys.modules["fashion"] = definition
    spec.loader.exec_module(definition)
    graph = root / "serveprune/demo/fashion.onnx"
    network: nn.Module = definition.FashionNetwork()
    # Names are kept on the way to the graph and back.
    found = GraphModule(ir.load(graph), name="fashion").state_dict()
    network.load_state_dict({name: found.get(name, torch.tensor(0)) for name in network.state_dict()})
    images = np.random.default_rng(0).standard_normal((64, 1, 28, 28)).astype(np.float32)
    return Subject(network, graph, {"image": torch.from_numpy(images)}, training=True)


def efficientnet_lite0(folder: Path) -> Subject:
    """The ImageNet classifier of the packages, 8 images."""
    efficientnet.require_packages()
    inputs = [{"name": "inputs", "shape": ["batch", 3, efficientnet.SIZE, efficientnet.SIZE]}]
    source = {"torch": "efficientnet:network", "inputs": inputs, "outputs": ["logits"]}
    import_model(ModelConfig.model_validate({"source": source}), folder=folder, progress=lambda share, what: None)
    images = np.random.default_rng(0).standard_normal((8, 3, efficientnet.SIZE, efficientnet.SIZE))
    feeds = {"inputs": torch.from_numpy(images.astype(np.float32))}
    network = efficientnet.network()
    # A graph has neither: they are left out of inference, for which it was exported.
    network._dropout = nn.Identity()
    network._global_params = network._global_params._replace(drop_connect_rate=None)  # type: ignore[operator, union-attr]
    return Subject(network, folder / "model.onnx", feeds, training=True)


SUBJECTS: Mapping[str, Callable[[Path], Subject]] = {
    "minilm": minilm,
    "fashion": fashion,
    "efficientnet": efficientnet_lite0,
}

if __name__ == "__main__":
    main()
