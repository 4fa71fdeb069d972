"""Train the demo's vision network on Fashion-MNIST and write its files.

Writes `fashion.onnx`, `fashion_evaluation.npz`, `fashion_calibration.npz` and `boot.png`. The network is a
small residual one, deliberately wider than the task needs, with BatchNormalization left in the graph:
folding, pruning and quantizing are what the demo shows. Needs torch, onnx, onnxscript, onnxruntime, numpy
and pillow; a few CPU-minutes.
"""

from __future__ import annotations

import argparse
import gzip
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx_ir.passes import common
from onnxscript import optimizer
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

PIXEL_MEAN = 0.286
PIXEL_STD = 0.353
CLASSES = 10
ANKLE_BOOT = 9
OPSET = 20
LARGEST_SHIFT_PIXELS = 1
HOW_TO_GET_THE_DATA = (
    "the four idx.gz files of Fashion-MNIST are needed: `apt-get download dataset-fashion-mnist`, then "
    "`dpkg -x dataset-fashion-mnist_*.deb fashion`, then `--data fashion/usr/share/datasets/fashion-mnist`"
)


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Greyscale images: `pixels` (N, 28, 28) uint8, `labels` (N,) int64 in 0..9."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an idx.gz file of unsigned bytes.

    Raises:
        ValueError: if the header is not that of an idx file of unsigned bytes.
    """
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path}: expected an idx file of unsigned bytes, its first bytes are {content[:4]!r}")
    rank = content[3]
    shape = np.frombuffer(content, dtype=">u4", count=rank, offset=4).tolist()
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * rank).reshape(shape)


def read_split(folder: Path, split: str) -> LabelledImages:
    """Read one split, `train` or `t10k`."""
    pixels = read_idx(folder / f"{split}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{split}-labels-idx1-ubyte.gz")
    return LabelledImages(pixels=pixels, labels=labels.astype(np.int64))


def normalise(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Turn (N, 28, 28) uint8 pixels into the network's input, (N, 1, 28, 28) float32."""
    scaled = pixels.astype(np.float32)[:, None] / np.float32(255)
    return (scaled - np.float32(PIXEL_MEAN)) / np.float32(PIXEL_STD)


def convolution(channels_in: int, channels_out: int, *, kernel: int, stride: int = 1) -> nn.Sequential:
    """Make a convolution followed by BatchNorm, which makes a bias superfluous."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels_out),
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, projected when the shape changes (arXiv 1512.03385)."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int) -> None:
        super().__init__()
        self.first = convolution(channels_in, channels_out, kernel=3, stride=stride)
        self.second = convolution(channels_out, channels_out, kernel=3)
        same_shape = channels_in == channels_out and stride == 1
        self.shortcut: nn.Module = (
            nn.Identity() if same_shape else convolution(channels_in, channels_out, kernel=1, stride=stride)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, channels_in, H, W) to (N, channels_out, H / stride, W / stride)."""
        residual: Tensor = self.second(functional.relu(self.first(features)))
        return functional.relu(residual + self.shortcut(features))


class FashionNetwork(nn.Module):
    """Residual network for 28x28 greyscale images."""

    def __init__(self, widths: tuple[int, int, int] = (48, 96, 128)) -> None:
        super().__init__()
        narrow, middle, wide = widths
        self.stem = convolution(1, narrow, kernel=3, stride=2)
        self.blocks = nn.Sequential(
            ResidualBlock(narrow, narrow, stride=1),
            ResidualBlock(narrow, middle, stride=2),
            ResidualBlock(middle, wide, stride=2),
        )
        self.head = nn.Linear(wide, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Map (N, 1, 28, 28) normalised images to (N, 10) logits."""
        features: Tensor = self.blocks(functional.relu(self.stem(image)))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def augment(pixels: Tensor) -> Tensor:
    """Flip half of the (N, 28, 28) uint8 images left to right and shift each by up to one pixel."""
    count, height, width = pixels.shape
    flipped = torch.where(torch.rand(count, 1, 1) < 0.5, pixels.flip(2), pixels)
    padded = functional.pad(flipped, (LARGEST_SHIFT_PIXELS,) * 4)
    shifts = torch.randint(0, 2 * LARGEST_SHIFT_PIXELS + 1, (2, count, 1))
    rows = (torch.arange(height) + shifts[0])[:, :, None]
    columns = (torch.arange(width) + shifts[1])[:, None, :]
    return padded[torch.arange(count)[:, None, None], rows, columns]


def train(network: FashionNetwork, images: LabelledImages, *, epochs: int, batch: int) -> None:
    """Train in place with SGD, a one-cycle learning rate and label smoothing."""
    pixels, labels = torch.from_numpy(images.pixels.copy()), torch.from_numpy(images.labels)
    steps_per_epoch = len(labels) // batch
    optimiser = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=0.2, epochs=epochs, steps_per_epoch=steps_per_epoch, pct_start=0.25
    )
    network.train()
    for epoch in range(epochs):
        loss_sum = 0.0
        for chosen in torch.randperm(len(labels))[: steps_per_epoch * batch].reshape(-1, batch):
            inputs = torch.from_numpy(normalise(augment(pixels[chosen]).numpy()))
            # Nearly halves the time on CPUs that have bfloat16; the weights stay float32.
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = network(inputs.to(memory_format=torch.channels_last))
            loss = functional.cross_entropy(logits.float(), labels[chosen], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            loss_sum += loss.item()
        print(f"epoch {epoch + 1}/{epochs}: training loss {loss_sum / steps_per_epoch:.4f}", flush=True)
    network.eval()


def export(network: FashionNetwork, path: Path) -> None:
    """Write the network as one ONNX file with BatchNormalization unfolded and a dynamic batch axis."""
    # Two, not one: the exporter takes an example batch of one for a constant.
    example = torch.zeros(2, 1, 28, 28)
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        # The exporter's optimizer folds BatchNormalization; the passes below do the rest of its work.
        optimize=False,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    assert program is not None, "a dynamo export always returns a program"
    model = program.model
    common.InlinePass()(model)
    optimizer.fold_constants(model, onnx_shape_inference=True)
    for tidy in (
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
        common.ClearMetadataAndDocStringPass(),
        common.NameFixPass(),
    ):
        tidy(model)
    onnx_ir.save(model, path)
    onnx.checker.check_model(path, full_check=True)


def predict(session: onnxruntime.InferenceSession, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the most likely class, (N,) int64, of each of the (N, 28, 28) uint8 images."""
    parts = [pixels[start : start + 500] for start in range(0, len(pixels), 500)]
    return np.concatenate([session.run(["logits"], {"image": normalise(part)})[0].argmax(axis=1) for part in parts])


def stratified(labels: NDArray[np.int64], *, count: int, chance: np.random.Generator) -> NDArray[np.int64]:
    """Choose `count` row numbers with the same number of every class, in random order."""
    chosen = [chance.choice(np.flatnonzero(labels == c), count // CLASSES, replace=False) for c in range(CLASSES)]
    return chance.permutation(np.concatenate(chosen))


def main() -> None:
    """Train, export, measure the exported file, and write the data files beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=HOW_TO_GET_THE_DATA)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[2] / "serveprune" / "demo")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.data is None or not arguments.data.is_dir():
        parser.error(HOW_TO_GET_THE_DATA)
    torch.manual_seed(arguments.seed)
    training, test = read_split(arguments.data, "train"), read_split(arguments.data, "t10k")

    network = FashionNetwork()
    # The layout in which CPU convolutions train fastest; the stub of `Module.to` does not know the argument.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = sum(parameter.numel() for parameter in network.parameters())
    started_seconds, started_cpu_seconds = time.perf_counter(), time.process_time()
    train(network, training, epochs=arguments.epochs, batch=arguments.batch)
    wall_seconds, cpu_seconds = (
        time.perf_counter() - started_seconds,
        time.process_time() - started_cpu_seconds,
    )
    print(f"{parameters} parameters trained in {wall_seconds:.0f} s ({cpu_seconds:.0f} CPU-seconds)")

    arguments.out.mkdir(parents=True, exist_ok=True)
    export(network, arguments.out / "fashion.onnx")
    session = onnxruntime.InferenceSession(arguments.out / "fashion.onnx", providers=["CPUExecutionProvider"])
    right = predict(session, test.pixels) == test.labels

    chance = np.random.default_rng(arguments.seed)
    evaluation = stratified(test.labels, count=2_000, chance=chance)
    calibration = chance.choice(len(training.labels), 512, replace=False)
    np.savez_compressed(
        arguments.out / "fashion_evaluation.npz",
        image=normalise(test.pixels[evaluation]),
        label=test.labels[evaluation],
    )
    np.savez_compressed(arguments.out / "fashion_calibration.npz", image=normalise(training.pixels[calibration]))
    boot = np.flatnonzero(right & (test.labels == ANKLE_BOOT))[0]
    Image.fromarray(test.pixels[boot]).save(arguments.out / "boot.png", optimize=True)
    print(
        f"accuracy of fashion.onnx: {right.mean():.4f} of {len(right)} test images, "
        f"{right[evaluation].mean():.4f} of the {len(evaluation)} in fashion_evaluation.npz"
    )


if __name__ == "__main__":
    main()
