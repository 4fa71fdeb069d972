"""Whatever a file holds, loading it gives a config or a `ConfigError` whose lines a person can use."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ByteSize

from serveprune.config.canary import Pause
from serveprune.config.loading import load_config
from serveprune.config.model import ModelEntry
from serveprune.config.root import ServePruneConfig
from serveprune.config.server import Address
from serveprune.errors import ConfigError

# "another value (...)" is what a finding of pydantic becomes that nobody wrote words for.
WITHOUT_WORDS = re.compile(r"expected another value|pydantic|input_type|Input should|Value error")
PROBLEM = re.compile(r"(expected .+|unknown key.+)", re.DOTALL)

anything: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**18, max_value=10**40)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["model.onnx", "dense", "int8", "m", "127.0.0.1:8080", "20GiB", "a:b", "${X}", "..", "~", "\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def almost(annotation: Any) -> st.SearchStrategy[Any]:
    """Values that look like the annotation's, with something wrong in them now and then."""
    return st.one_of(right(annotation), right(annotation), right(annotation), anything)


def right(annotation: Any) -> st.SearchStrategy[Any]:
    arguments = get_args(annotation)
    if annotation is Any:
        return anything
    match get_origin(annotation):
        case None if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return mapping_for(annotation)
        case origin if origin is Annotated:
            return right(arguments[0])
        case origin if origin in (Union, UnionType):
            return st.one_of(*(right(argument) for argument in arguments))
        case origin if origin is Literal:
            return st.sampled_from(arguments)
        case origin if origin is tuple:
            return st.lists(almost(arguments[0]), max_size=3)
        case origin if origin is dict:
            return st.dictionaries(st.sampled_from(["m", "int8", "x", "a b"]), almost(arguments[1]), max_size=2)
    return SCALARS[annotation]


def mapping_for(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    fields = {name: almost(field.annotation) for name, field in model.model_fields.items()}
    required = {name: fields[name] for name, field in model.model_fields.items() if field.is_required()}
    optional = {name: fields[name] for name in fields if name not in required}
    tame = st.fixed_dictionaries(required, optional=optional)
    if model is ModelEntry:
        # One of two keys is needed, which says nothing of either alone.
        source, version = optional.pop("source"), optional.pop("version")
        versions, policy = optional.pop("versions"), optional.pop("version_policy")
        tame = st.one_of(
            st.fixed_dictionaries({"source": source}, optional={**optional, "version": version}),
            st.fixed_dictionaries({"versions": versions}, optional={**optional, "version_policy": policy}),
        )
    wild = st.dictionaries(st.sampled_from([*fields, "unknown"]), anything, max_size=3)
    return _briefly_shown(st.one_of(tame, tame, tame, wild))


@st.composite
def _drawn(draw: st.DrawFn, strategies: "Strategies") -> dict[str, Any]:
    return draw(strategies.only)


class Strategies:
    """Keeps a strategy out of what hypothesis prints, which warns when that grows too long."""

    def __init__(self, only: st.SearchStrategy[dict[str, Any]]) -> None:
        self.only = only


def _briefly_shown(strategy: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return _drawn(Strategies(strategy))


SCALARS: Mapping[Any, st.SearchStrategy[Any]] = {
    NoneType: st.none(),
    str: st.sampled_from(["dense", "int8", "m", "x", "module:function", "1"]),
    Path: st.sampled_from(
        ["model.onnx", "minilm", "tokenizer.json", "calibration.jsonl", "evaluation.npz", "none.npz"]
    ),
    int: st.integers(min_value=-1, max_value=5),
    float: st.floats(min_value=-1, max_value=5),
    bool: st.booleans(),
    ByteSize: st.sampled_from(["20GiB", "1", 1024, "1.5 MB", "-1", "20 Gigs"]),
    Pause: st.sampled_from(["10m", "1h30m", "90", 5, {}, {"duration": "10s"}, {"duration": -1}, "10 days"]),
    Address: st.sampled_from(["127.0.0.1:0", "[::1]:8080", "0.0.0.0:9000", ":80", "localhost"]),
}


def check(file: Path, text: str) -> bool:
    """Load the text; tell whether it is a valid config."""
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    problems = outcome(file)
    assert problems is None or problems
    for problem in problems or ():
        assert re.match(rf"{re.escape(str(file))}:[1-9]\d*: ", problem) is not None, problem
        assert PROBLEM.search(problem) is not None, problem
        assert WITHOUT_WORDS.search(problem) is None, problem
    assert len(set(problems or ())) == len(problems or ())
    return problems is None


def outcome(file: Path) -> tuple[str, ...] | None:
    try:
        load_config(file, environment={})
    except ConfigError as error:
        return error.problems
    return None


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzzed")
    for name in ("model.onnx", "tokenizer.json", "calibration.jsonl", "evaluation.npz"):
        (folder / name).write_bytes(b"content")
    (folder / "minilm").mkdir()
    (folder / "minilm" / "config.json").write_text("{}")
    return folder / "serveprune.yaml"


repeatable = settings(derandomize=True, max_examples=100)


@repeatable
@example(data={"models": {"m": {"preprocessing": []}}})
@given(data=mapping_for(ServePruneConfig))
def test_load_config_loads_or_reports_when_a_config_is_almost_right(file: Path, data: dict[str, Any]) -> None:
    check(file, yaml.safe_dump(data, allow_unicode=True))


@repeatable
@example(data={"[key]": None, "models": {"[key]": {"[key]": "[key]"}}, "deployments": {"[key]": "[key]"}})
@given(data=anything)
def test_load_config_loads_or_reports_when_the_document_is_anything(file: Path, data: Any) -> None:
    check(file, yaml.safe_dump(data))


@repeatable
@example("a: &a {<<: *a}\n")
@example("a: &a [*a]\n")
@example("a: &a {<<: [*a, *a], b: *a}\n")
@example("? {a: 1}\n: {<<: {[1]: 2}}\n")
@example("<<: 5\n")
@example("a: <<\n")
@example("%YAML 9" + "9" * 5000 + ".1\n---\na: 1\n")
@example("- !<tag:yaml.org,2002:int> 0x\n")
@example("a: !!binary x\nb: !!timestamp x\nc: !!set {a}\nd: !!bool x\ne: !!null x\nf: ! x\ng: !!float x\n")
@example('"\\ud800": "\\ud800"\nmodels: {"\\udfff": {version: "\\ud800", source: {onnx: "\\ud800"}}}\n')
@example("\ud800")
@given(
    text=st.text(alphabet=st.sampled_from("amodels:{}[]<>*&!%@`'\"|?- \n\t#,$~.0129xoe\\/\x00\x85\ufeff"), max_size=60)
)
def test_load_config_loads_or_reports_when_the_text_is_anything(file: Path, text: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(ConfigError):
            load_config(file, environment={})
    else:
        check(file, text)


def test_load_config_ends_soon_when_aliases_multiply(file: Path) -> None:
    levels = [f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 9)}]" for level in range(1, 12)]
    merges = [f"m{level}: &m{level} {{<<: [{', '.join([f'*m{level - 1}'] * 9)}]}}" for level in range(1, 12)]
    for first, bomb in (("l0: &l0 x", levels), ("m0: &m0 {a: x}", merges)):
        file.write_text("\n".join([first, *bomb]))
        with pytest.raises(ConfigError, match="expected at most 100000 values, got more"):
            load_config(file, environment={})


def test_the_almost_right_configs_are_right_now_and_then(file: Path) -> None:
    # Otherwise the fuzzing above would only ever see refusals.
    outcomes = set()

    @settings(max_examples=200, database=None, derandomize=True)
    @given(data=mapping_for(ServePruneConfig))
    def sample(data: dict[str, Any]) -> None:
        outcomes.add(check(file, yaml.safe_dump(data)))

    sample()
    assert outcomes == {True, False}
