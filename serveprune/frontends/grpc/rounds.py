"""The runtime's own serving loop, but one that tells when it has done all there is to do for the moment.

Calls that came together can then share a run, as they do over HTTP. See `direct_calls` for what this reaches into.
"""

import threading
import time
from collections.abc import Callable

from grpc import _server as runtime
from grpc._cython import cygrpc

from serveprune.frontends.grpc.runtime import Server

_LOOK_SECONDS = 1.0
"""How often the loop looks whether the server still exists."""
_MOST_EVENTS = 256
"""That a round is held open for; each call is three or four."""

NAMES = (
    "_ServerStage",
    "_begin_shutdown_once",
    "_process_event_and_continue",
    "_request_call",
    "_request_registered_call",
)
"""What the runtime must have."""


def start_in_rounds(server: Server, *, end_round: Callable[[], None], is_round_open: Callable[[], bool]) -> None:
    """Start a server whose ports are bound.

    Args:
        server: As ``grpc.server`` made it.
        end_round: Called in the serving thread when nothing more is there to be read, if a round is open.
        is_round_open: Whether something waits for the end of the round.
    """
    state = server._state
    with state.lock:
        state.server.start()
        state.stage = runtime._ServerStage.STARTED
        for method in state.registered_method_handlers:
            runtime._request_registered_call(state, method)
        runtime._request_call(state)
    threading.Thread(target=_serve, args=(state, end_round, is_round_open), name="grpc-loop", daemon=True).start()


def _serve(state: Server, end_round: Callable[[], None], is_round_open: Callable[[], bool]) -> None:
    events = 0
    while True:
        is_open = is_round_open()
        events = events + 1 if is_open else 0
        # What has passed already is a moment for which nobody waits.
        event = state.completion_queue.poll(0 if is_open else time.time() + _LOOK_SECONDS)
        if state.server_deallocated:
            runtime._begin_shutdown_once(state)
        is_pause = event.completion_type == cygrpc.CompletionType.queue_timeout
        if is_open and (is_pause or events >= _MOST_EVENTS):
            end_round()
        if not is_pause and not runtime._process_event_and_continue(state, event):
            if is_round_open():
                end_round()
            return
        # The runtime spins if an event that holds a finished call is still there when the next one is awaited.
        event = None
