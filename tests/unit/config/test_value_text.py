from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ByteSize, SecretStr

from serveprune.config.canary import CanaryConfig
from serveprune.config.model import DatasetConfig, ImagePreprocessing, TextPreprocessing
from serveprune.config.profile import PassConfig, QuantizeOptions
from serveprune.config.server import Address, StoreConfig
from serveprune.config.value_text import changed_texts, plain_value, value_text

CASES: dict[str, tuple[Any, Any, str]] = {
    "nothing": (None, None, "none"),
    "a truth value": (True, True, "true"),
    "a number": (0.97, 0.97, "0.97"),
    "a whole number of a setting that takes others": (150.0, 150.0, "150"),
    "text": ("dense", "dense", "dense"),
    "empty text": ("", "", '""'),
    "text that would move the cursor": ("\x1b[2J", "\x1b[2J", '"\\u001b[2J"'),
    "a path": (Path("/srv/a model/m.onnx"), "/srv/a model/m.onnx", "/srv/a model/m.onnx"),
    "an address": (Address("::1", 8080), "[::1]:8080", "[::1]:8080"),
    "powers of 1024": (ByteSize(20 * 2**30), 20 * 2**30, "20GiB"),
    "powers of 1000": (ByteSize(50 * 10**9), 50 * 10**9, "50GB"),
    "small units": (ByteSize(3 * 2**10), 3072, "3KiB"),
    "odd bytes": (ByteSize(1023), 1023, "1023"),
    "names": (("dense", "int8"), ["dense", "int8"], "[dense, int8]"),
    "nothing in a list": ((), [], "[]"),
    "defaults": (QuantizeOptions(), {}, "{}"),
    "a pass": (
        PassConfig.model_validate({"quantize": {"scheme": "static", "dtype": "int8"}}),
        {"quantize": {"scheme": "static"}},
        "{quantize: {scheme: static}}",
    ),
    "a pass without options": (
        PassConfig.model_validate({"quantize": None}),
        {"quantize": {}},
        "{quantize: {}}",
    ),
    "a mapping whose kind has a default": (
        ImagePreprocessing(size=(28, 28)),
        {"kind": "image", "size": [28, 28]},
        "{kind: image, size: [28, 28]}",
    ),
    "steps with pauses": (
        CanaryConfig.model_validate({"tier": "int8", "steps": [{"setWeight": 5}, {"pause": "90m"}, {"pause": {}}]}),
        {"tier": "int8", "steps": [{"setWeight": 5}, {"pause": "1h30m"}, {"pause": {}}]},
        "{tier: int8, steps: [{setWeight: 5}, {pause: 1h30m}, {pause: {}}]}",
    ),
    "a path in a mapping": (
        TextPreprocessing(tokenizer=Path("/t.json"), max_length=8),
        {"kind": "text", "tokenizer": "/t.json", "max_length": 8},
        "{kind: text, tokenizer: /t.json, max_length: 8}",
    ),
}


@pytest.mark.parametrize(("value", "plain", "text"), CASES.values(), ids=CASES.keys())
def test_value_is_written_as_a_file_would_say_it(value: Any, plain: Any, text: str) -> None:
    assert plain_value(value) == plain
    assert value_text(value) == text


def test_size_is_read_back_as_it_was_when_its_text_is_put_into_a_file() -> None:
    for size_bytes in (1, 999, 1000, 1024, 1_000_000, 2**20, 15 * 10**8, 3 * 2**40, 2**60):
        text = value_text(ByteSize(size_bytes))
        assert StoreConfig.model_validate({"path": "s", "max_bytes": text}).max_bytes == size_bytes


def test_secret_is_never_shown() -> None:
    class Login(BaseModel):
        name: str
        password: SecretStr

    old, new = (Login(name="ops", password=SecretStr(secret)) for secret in ("hunter2", "swordfish"))
    assert old != new
    assert plain_value(new) == {"name": "ops", "password": "**********"}
    assert changed_texts(old.password, new.password) == ("**********", "**********")


def test_long_values_are_cut_to_where_they_begin_to_differ() -> None:
    folder = "/srv" + "/deep" * 30
    old, new = changed_texts(DatasetConfig(file=Path(f"{folder}/may.npz")).file, Path(f"{folder}/june.npz"))
    assert (old, new) == ("...deep/deep/deep/deep/may.npz", "...deep/deep/deep/deep/june.npz")
    assert value_text(Path(f"{folder * 9}/may.npz")) == f"{(folder * 9)[:397]}..."


@given(st.text(alphabet="ab/", max_size=200), st.text(alphabet="ab/", max_size=200))
def test_changed_texts_are_short_and_differ_when_values_do(old: str, new: str) -> None:
    texts = changed_texts(old, new)
    assert max(map(len, texts)) <= 80
    assert (texts[0] == texts[1]) == (old == new)
