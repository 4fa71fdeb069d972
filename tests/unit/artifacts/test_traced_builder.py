from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

from serveprune.artifacts.builder import BuildOutcome, BuildProgress, BuildRequest, BuildResult
from serveprune.artifacts.traced_builder import TracedBuilder
from serveprune.config.model import ModelConfig, OnnxSource

REQUEST = BuildRequest.model_construct(
    model_name="m",
    model=ModelConfig.model_construct(version="3", source=OnnxSource.model_construct(onnx=Path("m.onnx"))),
    tier="int8",
)


class Spans:
    """Keeps what a trace would hold."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    @contextmanager
    def span(self, name: str, attributes: Any) -> Iterator["Spans"]:
        self.said.append((name, dict(attributes)))
        yield self

    def note(self, attributes: Any) -> None:
        self.said.append(dict(attributes))

    def stage(self, name: str, *, begun_ns: int, ended_ns: int, failure: str | None = None) -> None:
        self.said.append((name, begun_ns, ended_ns, failure))

    def failed(self, reason: str) -> None:
        self.said.append(reason)


class Builder:
    def __init__(self, *stages: str, result: BuildResult) -> None:
        self._stages = stages
        self._result = result

    def build(
        self, request: BuildRequest, *, on_progress: Callable[[BuildProgress], None], cancelled: Event
    ) -> BuildResult:
        for number, stage in enumerate(self._stages):
            on_progress(BuildProgress(stage, 1.0 if stage == "done" else number / len(self._stages)))
        return self._result


def said_of(*stages: str, result: BuildResult) -> list[Any]:
    spans, progress = Spans(), list[BuildProgress]()
    clock = count(100)
    builder = TracedBuilder(
        Builder(*stages, result=result),
        spans,  # type: ignore[arg-type]  # as much of it as is used
        clock_ns=lambda: next(clock),
    )
    assert builder.build(REQUEST, on_progress=progress.append, cancelled=Event()) is result
    assert [each.stage for each in progress] == list(stages)
    return spans.said


def test_each_stage_is_a_span_from_its_first_word_to_that_of_the_next() -> None:
    said = said_of("import", "prune", "prune", "measure", "done", result=BuildResult(BuildOutcome.BUILT, key="k"))
    assert said == [
        ("build", {"serveprune.model": "m", "serveprune.version": "3", "serveprune.tier": "int8"}),
        ("import", 100, 101, None),
        ("prune", 102, 103, None),
        ("measure", 104, 105, None),
        {"serveprune.build.outcome": "built", "serveprune.build.key": "k"},
    ]


def test_failed_build_says_why_and_at_which_stage() -> None:
    said = said_of("import", "prune", result=BuildResult(BuildOutcome.FAILED, reasons=("no disk", "no luck")))
    assert said[1:3] == [("import", 100, 101, None), ("prune", 102, 103, "no disk; no luck")]
    assert said[-1] == "no disk; no luck"
