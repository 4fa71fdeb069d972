import threading
from threading import Event

from serveprune.artifacts.builder import BuildOutcome, BuildProgress, BuildRequest, BuildResult
from serveprune.config.model import ModelConfig
from serveprune.supervision.asking_builder import AskingBuilder
from serveprune.supervision.messages import BuildAsked, BuildEnded, BuildProgressed

REQUEST = BuildRequest(model_name="boots", model=ModelConfig.model_validate({"source": {"onnx": __file__}}))
BUILT = BuildResult(BuildOutcome.BUILT, key="k")


def test_build_follows_the_answers_to_its_own_number() -> None:
    progress: list[BuildProgress] = []

    def answer(asked: BuildAsked) -> bool:
        builder.take(BuildEnded(number=asked.number + 1, result=BuildResult(BuildOutcome.FAILED)))
        builder.take(BuildProgressed(number=asked.number, progress=BuildProgress("importing", 0.5)))
        builder.take(BuildEnded(number=asked.number, result=BUILT))
        return True

    builder = AskingBuilder(answer)
    assert builder.build(REQUEST, on_progress=progress.append, cancelled=Event()) == BUILT
    assert builder.build(REQUEST, on_progress=progress.append, cancelled=Event()) == BUILT
    assert progress == [BuildProgress("importing", 0.5)] * 2


def test_build_fails_when_nobody_can_be_asked() -> None:
    builder = AskingBuilder(lambda asked: False)
    result = builder.build(REQUEST, on_progress=lambda progress: None, cancelled=Event())
    assert (result.outcome, result.reasons) == (BuildOutcome.FAILED, ("the supervisor is gone",))


def test_build_ends_when_it_is_cancelled() -> None:
    asked, cancelled = Event(), Event()

    def note(_: BuildAsked) -> bool:
        asked.set()
        return True

    builder = AskingBuilder(note)
    results: list[BuildResult] = []
    thread = threading.Thread(
        target=lambda: results.append(builder.build(REQUEST, on_progress=lambda _: None, cancelled=cancelled))
    )
    thread.start()
    assert asked.wait(30)
    cancelled.set()
    thread.join(30)

    assert [result.reasons for result in results] == [("cancelled",)]
    builder.take(BuildEnded(number=0, result=BUILT))  # too late, and of no consequence
