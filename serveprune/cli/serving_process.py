"""One of several serving processes: ``python -m serveprune.cli.serving_process DESCRIPTOR PARENT``.

Started by a `Supervisor`, which it hears from and reports to over the socket with that descriptor.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

from serveprune.cli.self_test import self_test
from serveprune.cli.signals import StopSignals
from serveprune.cli.stopping import leave
from serveprune.cli.telemetry import start_telemetry
from serveprune.errors import ServePruneError
from serveprune.observability.shared_values import values_shared
from serveprune.repository.model_folder import ModelFolder
from serveprune.server import Endpoints, Server
from serveprune.supervision.asking_builder import AskingBuilder
from serveprune.supervision.asking_operators import AskingOperators
from serveprune.supervision.asking_repository import AskingRepository
from serveprune.supervision.lifeline import end_with_parent
from serveprune.supervision.messages import (
    Apply,
    Begin,
    BuildEnded,
    BuildProgressed,
    ChangeEnded,
    Channel,
    CheckAsked,
    Checked,
    Contents,
    Listen,
    Listening,
    Message,
    NotStarted,
    Observed,
    OperatorAnswered,
    Spread,
    Standing,
    Told,
)

EXIT_NOT_STARTED = 2
EXIT_ABANDONED = 3

_POLL_SECONDS = 0.1
_LOOK_SECONDS = 0.2


def main() -> int:
    """Serve until a signal comes, and return the exit code."""
    descriptor, parent_pid = map(int, sys.argv[1:])
    end_with_parent(parent_pid)
    os.set_inheritable(descriptor, False)
    # The supervisor reads the config again, whoever else of the group the signal goes to.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=descriptor))
    messages = channel.messages()
    begin = next(messages)
    if not isinstance(begin, Begin):
        raise TypeError(f"expected to be told what to serve, got {begin.kind}")
    with values_shared(begin.series_folder, process=begin.process):
        return _serve(begin, channel, messages)


def _serve(begin: Begin, channel: Channel, messages: Iterator[Message]) -> int:
    stop_signals = StopSignals(second_ends=False)
    builder, may_listen, applied = AskingBuilder(channel.send), threading.Event(), _Applied(begin.number)
    settings = begin.config.repository
    repository = AskingRepository(
        channel.send,
        ModelFolder(settings.path),
        served=lambda: {model.name for model in server.registry.models()},
    )
    try:
        server = Server(
            begin.config,
            tracing=start_telemetry(begin.config.server, process=begin.process),
            shared_builder=builder,
            loadable=repository if settings.mode != "none" else None,
            contents=_by_version(begin.contents),
            series_folder=begin.series_folder,
        )
    except ServePruneError as error:
        channel.send(NotStarted(message=error.message, code=error.code))
        return EXIT_NOT_STARTED
    operators = AskingOperators(channel.send)
    server.operators.admit(operators.ask)
    hearing = threading.Thread(
        target=_hear,
        args=(server, builder, repository, operators, may_listen, applied, channel, messages),
        name="supervisor-channel",
        daemon=True,
    )
    hearing.start()
    server.load()
    try:
        _serve_until_stopped(server, stop_signals, may_listen, applied, channel)
    except ServePruneError as error:
        channel.send(NotStarted(message=error.message, code=error.code))
        return leave(server, exit_code=EXIT_NOT_STARTED)
    return leave(server, exit_code=0)


class _Applied:
    """Which config was applied last."""

    def __init__(self, number: int) -> None:
        self.number = number


def _by_version(contents: Contents) -> dict[tuple[str, str], str]:
    return {(name, version): content for name, version, content in contents}


def _hear(
    server: Server,
    builder: AskingBuilder,
    repository: AskingRepository,
    operators: AskingOperators,
    may_listen: threading.Event,
    applied: "_Applied",
    channel: Channel,
    messages: Iterator[Message],
) -> None:
    for message in messages:
        match message:
            case BuildProgressed() | BuildEnded():
                builder.take(message)
            case ChangeEnded():
                repository.take(message)
            case OperatorAnswered():
                operators.take(message)
            case Told():
                server.overview.tell_rollouts(message.rollouts, message.changes)
                if message.config is not None:
                    server.overview.tell_config(message.config)
            case Listen():
                may_listen.set()
            case Apply():
                server.apply(message.config, contents=_by_version(message.contents))
                applied.number = message.number
            case Spread():
                server.sides.obey(message.model, message.percent, message.artifact)
            case CheckAsked():
                endpoints = Endpoints(message.http, message.grpc, message.metrics)
                channel.send(Checked(problems=tuple(self_test(server, endpoints))))
    # Nobody is left to restart this process, or to show its metrics. The kernel ends it as well, where it can.
    os._exit(EXIT_ABANDONED)


def _serve_until_stopped(
    server: Server,
    stop_signals: StopSignals,
    may_listen: threading.Event,
    applied: "_Applied",
    channel: Channel,
) -> None:
    """Listen when the supervisor says so, and tell it how the tiers stand until they are settled."""
    told: Standing | None = None
    listens = False
    looked = time.monotonic()
    while not stop_signals.received:
        if may_listen.is_set() and not listens:
            endpoints = server.listen()
            listens = channel.send(Listening(http=endpoints.http, grpc=endpoints.grpc))
        # Before anything is looked at: what is told is no older than this.
        number = applied.number
        if told is not None and told.number != number:
            told = None
        # Afterwards only figures change, which nobody asks the supervisor for.
        if told is None or not told.settled:
            settled = server.controlplane.wait_settled(0)
            standing = Standing(
                models=tuple(server.controlplane.all_tiers()),
                settled=settled,
                number=number,
                answers=settled or server.dataplane.ready(),
            )
            if standing != told:
                channel.send(standing)
                told = standing
        if time.monotonic() - looked >= _LOOK_SECONDS:
            looked = time.monotonic()
            observed = server.sides.observe()
            if observed and listens:
                channel.send(Observed(models=observed))
        time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
