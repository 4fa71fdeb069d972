"""One of several serving processes: ``python -m serveprune.cli.serving_process DESCRIPTOR PARENT``.

Started by a `Supervisor`, which it hears from and reports to over the socket with that descriptor.
"""

import os
import socket
import sys
import threading
import time

from serveprune.cli.self_test import self_test
from serveprune.cli.stopping import leave
from serveprune.errors import ServePruneError
from serveprune.observability.logs import configure_logs
from serveprune.observability.shared_values import values_shared
from serveprune.server import Endpoints, Server, StopSignals
from serveprune.supervision.asking_builder import AskingBuilder
from serveprune.supervision.lifeline import end_with_parent
from serveprune.supervision.messages import (
    Begin,
    BuildEnded,
    BuildProgressed,
    Channel,
    CheckAsked,
    Checked,
    Listening,
    NotStarted,
    Standing,
)

EXIT_NOT_STARTED = 2
EXIT_ABANDONED = 3

_POLL_SECONDS = 0.1
_SETTLED_SECONDS = 2.0


def main() -> int:
    """Serve until a signal comes, and return the exit code."""
    descriptor, parent_pid = map(int, sys.argv[1:])
    end_with_parent(parent_pid)
    os.set_inheritable(descriptor, False)
    channel = Channel(socket.socket(fileno=descriptor))
    begin = next(channel.messages())
    if not isinstance(begin, Begin):
        raise TypeError(f"expected to be told what to serve, got {begin.kind}")
    configure_logs(process=begin.process)
    with values_shared(begin.series_folder, process=begin.process):
        return _serve(begin, channel)


def _serve(begin: Begin, channel: Channel) -> int:
    stop_signals = StopSignals()
    builder = AskingBuilder(channel.send)
    server = Server(begin.config, shared_builder=builder)
    try:
        endpoints = server.start()
    except ServePruneError as error:
        channel.send(NotStarted(message=error.message, code=error.code))
        return EXIT_NOT_STARTED
    channel.send(Listening(http=endpoints.http, grpc=endpoints.grpc))
    threading.Thread(target=_listen, args=(server, builder, channel), name="supervisor-channel", daemon=True).start()
    _report_until_stopped(server, stop_signals, channel)
    return leave(server, exit_code=0)


def _listen(server: Server, builder: AskingBuilder, channel: Channel) -> None:
    for message in channel.messages():
        match message:
            case BuildProgressed() | BuildEnded():
                builder.take(message)
            case CheckAsked():
                endpoints = Endpoints(message.http, message.grpc, message.metrics)
                channel.send(Checked(problems=tuple(self_test(server, endpoints))))
    # Nobody is left to restart this process, or to show its metrics. The kernel ends it as well, where it can.
    os._exit(EXIT_ABANDONED)


def _report_until_stopped(server: Server, stop_signals: StopSignals, channel: Channel) -> None:
    """Tell the supervisor how the tiers stand, whenever that changes."""
    told: Standing | None = None
    look_at = 0.0
    while not stop_signals.received:
        if time.monotonic() >= look_at:
            standing = Standing(
                models=tuple(server.controlplane.tiers(model.name) for model in server.registry.models()),
                settled=server.controlplane.wait_settled(0),
            )
            if standing != told:
                channel.send(standing)
                told = standing
            # Afterwards only figures change.
            look_at = time.monotonic() + (_SETTLED_SECONDS if standing.settled else 0.0)
        time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
