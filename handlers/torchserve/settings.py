"""From the `model-config.yaml` of an archive to the config of a server with one model."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serveprune.config.document import parse_document
from serveprune.config.expansion import escaped
from serveprune.config.loading import load_config_content
from serveprune.config.root import ServePruneConfig
from serveprune.config.server import Address, parse_address, parse_size
from serveprune.errors import ConfigError

SECTION = "serveprune"
"""Key of the handler's settings in `model-config.yaml`, below `handler`."""

STORE_VARIABLE = "SERVEPRUNE_STORE"
"""Variable of the environment that names the artifact store where the archive does not."""

METRICS_VARIABLE = "SERVEPRUNE_METRICS"
"""Likewise, of the address of the page with metrics."""

RESPONSE_LIMIT_VARIABLE = "SERVEPRUNE_MAX_RESPONSE_BYTES"
"""Likewise, of what TorchServe takes as an answer: where both are named, the smaller one counts."""

DEFAULT_MESSAGE_BYTES = 6_553_500
"""Of TorchServe's own `max_request_size` and `max_response_size`, of which nobody tells a worker."""

_HANDLER = "handler"
_METRICS = "metrics"
_RESPONSE_LIMIT = "max_response_bytes"
_FILE = "model-config.yaml"
_LINE = re.compile(rf"{re.escape(_FILE)}:\d+: ")
"""Of another document than the user's."""
_BESIDE_THE_MODEL = ("store", "builds", "server", "profiles", "deployment")
_OF_THE_HANDLER = (_RESPONSE_LIMIT, _METRICS)
_SOURCE_OF_SUFFIX = {".onnx": "onnx", ".pt2": "pt2"}


def settings_of(folder: Path, *, config_file: str | None) -> object:
    """Return what `model-config.yaml` says under `handler.serveprune`, or ``None``.

    It is read as `serveprune.yaml` is: TorchServe, whose reader is of YAML 1.1, takes `1e-3` for text, `off` for a
    truth value and `12:30` for 750.

    Args:
        folder: Of the unpacked archive.
        config_file: Name of the file in it, if it has one.

    Raises:
        ConfigError: It cannot be read; the message names each place.
    """
    if config_file is None:
        return None
    try:
        text = (folder / config_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{config_file}: cannot be read: {error}"]) from None
    document = parse_document(text, environment=os.environ)
    # What else is in it is not ours to judge.
    ours = [each for each in document.problems if not each.path or each.path[:2] == (_HANDLER, SECTION)]
    if ours:
        raise ConfigError([each.text(Path(config_file)) for each in ours])
    handler = document.data.get(_HANDLER) if isinstance(document.data, dict) else None
    return handler.get(SECTION) if isinstance(handler, dict) else None


def config_of(
    said: object, *, model: str, version: str, folder: Path, serialized_file: str | None = None
) -> ServePruneConfig:
    """Return what is to be served, in the form that serveprune's own server has it.

    Args:
        said: See `settings_of`: the keys of a model as in `serveprune.yaml`, and
            beside them `store`, `builds`, `server` (of which `executors` and `threads_per_executor` count), `profiles`,
            `deployment`, and those of the handler alone, `max_response_bytes` and `metrics`.
        model: Name it is registered under.
        version: Of the archive.
        folder: Of the unpacked archive; relative paths are relative to it.
        serialized_file: Name of the archive's weights, which are the source where none is named.

    Raises:
        ConfigError: Something in it is wrong; the message names each key.
    """
    if not isinstance(said, Mapping):
        got = "nothing" if said is None else type(said).__name__
        problem = f"expected a mapping with the keys of a model (source, tiers, ...), got {got}"
        raise ConfigError([f"{_FILE}: {_HANDLER}.{SECTION}: {problem}"])
    entry = {key: value for key, value in said.items() if key not in (*_BESIDE_THE_MODEL, *_OF_THE_HANDLER)}
    beside = {key: value for key, value in said.items() if key in _BESIDE_THE_MODEL}
    if "source" not in entry and serialized_file is not None:
        kind = _SOURCE_OF_SUFFIX.get(Path(serialized_file).suffix)
        if kind is not None:
            entry["source"] = {kind: serialized_file}
    document: dict[str, Any] = {
        "store": _store(beside.get("store")),
        "models": {model: {"version": version, **entry}},
        **{key: beside[key] for key in ("builds", "server", "profiles") if key in beside},
    }
    if "deployment" in beside:
        document["deployments"] = {model: beside["deployment"]}
    try:
        # JSON is YAML, in which all text is in quotes.
        return load_config_content(json.dumps(escaped(document)).encode(), name=_FILE, folder=folder)
    except ConfigError as error:
        raise ConfigError([_placed(problem, model=model) for problem in error.problems]) from None


def max_response_bytes(said: Mapping[str, Any]) -> int:
    """Return the size of the largest answer that TorchServe takes; it ends a worker that gives a larger one.

    Args:
        said: See `config_of`.

    Raises:
        ConfigError: It is no number of bytes.
    """
    place = f"{_FILE}: {_HANDLER}.{SECTION}.{_RESPONSE_LIMIT}"
    named = {place: said.get(_RESPONSE_LIMIT), RESPONSE_LIMIT_VARIABLE: os.environ.get(RESPONSE_LIMIT_VARIABLE) or None}
    limits = [_size(value, place=place) for place, value in named.items() if value is not None]
    return min(limits, default=DEFAULT_MESSAGE_BYTES)


def metrics_address(said: Mapping[str, Any]) -> Address | None:
    """Return where the worker serves all of our metrics; ``None`` if it does not.

    Args:
        said: See `config_of`.

    Raises:
        ConfigError: It is no address.
    """
    named = said.get(_METRICS)
    place = f"{_FILE}: {_HANDLER}.{SECTION}.{_METRICS}"
    if named is None:
        named, place = os.environ.get(METRICS_VARIABLE) or None, METRICS_VARIABLE
    if named is None:
        return None
    try:
        return parse_address(named)
    except ValueError as error:
        raise ConfigError([f"{place}: {error}"]) from None


def _size(value: object, *, place: str) -> int:
    try:
        return parse_size(value)
    except ValueError as error:
        raise ConfigError([f"{place}: what config.properties has as max_response_size: {error}"]) from None


def _store(said: object) -> object:
    if said is not None:
        return said
    named = os.environ.get(STORE_VARIABLE)
    # Not in the archive's folder, which is another one after each restart.
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return {"path": named or f"{cache}/serveprune"}


def _placed(problem: str, *, model: str) -> str:
    """Say where a problem is in `model-config.yaml`, of which this is another form."""
    place = _LINE.sub("", problem, count=1)
    for theirs, ours in ((f"models.{model}.", ""), (f"deployments.{model}", "deployment")):
        if place.startswith(theirs):
            place = ours + place.removeprefix(theirs)
    return f"{_FILE}: {_HANDLER}.{SECTION}.{place}"
