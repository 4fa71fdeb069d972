"""What happens to files of a store."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap_for_link(path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


def replace_by_folder(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "graph tampered with": lambda folder: flip_bit(folder / "model.onnx"),
    "graph truncated": lambda folder: os.truncate(folder / "model.onnx", 2),
    "graph empty": lambda folder: os.truncate(folder / "model.onnx", 0),
    "graph missing": lambda folder: (folder / "model.onnx").unlink(),
    "graph replaced by a link": lambda folder: swap_for_link(folder / "model.onnx"),
    "asset tampered with": lambda folder: flip_bit(folder / "assets" / "tokenizer.json"),
    "assets missing": lambda folder: shutil.rmtree(folder / "assets"),
    "manifest missing": lambda folder: (folder / "manifest.json").unlink(),
    "manifest empty": lambda folder: os.truncate(folder / "manifest.json", 0),
    "manifest truncated": lambda folder: os.truncate(folder / "manifest.json", 100),
    "manifest tampered with": lambda folder: flip_bit(folder / "manifest.json"),
    "manifest a folder": lambda folder: replace_by_folder(folder / "manifest.json"),
    "manifest digest missing": lambda folder: (folder / "manifest.json.sha256").unlink(),
    "everything missing": replace_by_folder,
}
