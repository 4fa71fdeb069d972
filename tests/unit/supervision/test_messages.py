import socket
from pathlib import Path

import pytest

from serveprune.artifacts.builder import BuildOutcome, BuildProgress, BuildRequest, BuildResult
from serveprune.config.root import ServePruneConfig
from serveprune.config.server import Address
from serveprune.errors import Code
from serveprune.supervision.messages import (
    Apply,
    Begin,
    BuildAsked,
    BuildEnded,
    BuildProgressed,
    ChangeAsked,
    ChangeEnded,
    Channel,
    CheckAsked,
    Checked,
    Listen,
    Listening,
    Message,
    NotStarted,
    Standing,
)

CONFIG = ServePruneConfig.model_validate(
    {
        "server": {"processes": 2},
        "profiles": {"int8": {"passes": [{"quantize": {"dtype": "int8", "scheme": "auto"}}]}},
        "models": {
            name: {"source": {"onnx": __file__}, "tiers": ["dense", "int8"]}
            for name in ("boots", "shoes", "hats", "bags")
        },
        "deployments": {
            "boots": {"default_tier": "int8"},
            "shoes": {"policy": "adaptive", "target_latency_ms": 50},
            "hats": {"canary": {"tier": "int8", "steps": [{"setWeight": 5}, {"pause": "10m"}, {"pause": {}}]}},
            "bags": {"split": {"int8": 1, "dense": 2}},
        },
    }
)
HTTP, GRPC = Address("127.0.0.1", 8080), Address("::1", 8081)
MESSAGES: tuple[Message, ...] = (
    Begin(config=CONFIG, process="0", series_folder=Path("/dev/shm/series")),
    Listening(http=HTTP, grpc=GRPC),
    NotStarted(message="no\nport", code=Code.FAILED_PRECONDITION),
    Standing(models=({"name": "boots", "tiers": [{"tier": "dense", "progress": None}]},), settled=False, answers=True),
    Listen(),
    BuildAsked(
        number=3,
        request=BuildRequest(
            model_name="boots", model=CONFIG.model("boots"), tier="int8", profile=CONFIG.profiles["int8"]
        ),
    ),
    BuildProgressed(number=3, progress=BuildProgress("importing", 0.25, "layer 3")),
    BuildEnded(
        number=3,
        result=BuildResult(
            BuildOutcome.FAILED, reasons=("a", "b"), seconds=1.5, bad_input=True, log=Path("/store/build.log")
        ),
    ),
    Apply(config=CONFIG, contents=(("boots", "1", "digest"),), number=2),
    ChangeAsked(number=1, action="load", name="boots"),
    ChangeEnded(number=1),
    ChangeEnded(number=2, code=Code.NOT_FOUND, message="no such folder"),
    CheckAsked(http=HTTP, grpc=GRPC, metrics=Address("127.0.0.1", 8082)),
    Checked(problems=("boots@dense over HTTP: no",)),
)


@pytest.fixture
def ends() -> tuple[Channel, Channel]:
    one, other = socket.socketpair()
    return Channel(one), Channel(other)


def test_channel_carries_every_message_as_it_was(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    assert all(here.send(message) for message in MESSAGES)
    here.close()
    assert tuple(there.messages()) == MESSAGES
    there.close()


def test_channel_puts_together_what_comes_in_pieces() -> None:
    raw, other = socket.socketpair()
    channel = Channel(other)
    line = Checked(problems=("x" * 200_000,)).model_dump_json().encode() + b"\n"
    received: list[Message] = []
    for piece in (line[:10], line[10:100_000], line[100_000:] + line[:5]):
        raw.sendall(piece)
        received += channel.receive() or []
    while not received:
        received += channel.receive() or []
    assert received == [Checked(problems=("x" * 200_000,))]
    raw.close()
    channel.close()


def test_channel_says_that_the_other_end_is_gone(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    there.close()
    assert here.receive() is None
    assert not here.send(Checked(problems=()))
    here.close()
    assert not here.send(Checked(problems=()))


def test_channel_is_closed_for_an_end_that_reads_nothing() -> None:
    here, there = socket.socketpair()
    here.settimeout(0.05)
    channel = Channel(here)
    answers = [channel.send(Checked(problems=("x" * 1_000_000,))) for _ in range(3)]
    assert answers == [False] * 3
    assert channel.receive() is None
    channel.close()
    there.close()
