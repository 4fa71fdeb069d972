"""The runtime's own serving loop, but one that tells when it has done all there is to do for the moment.

Calls that came together can then share a run, as they do over HTTP. The calls of one method are taken from the
runtime's core as they are. See `direct_calls` for why this reaches into the runtime.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

from grpc import _server as runtime
from grpc._cython import cygrpc

from serveprune.frontends.grpc.runtime import Server

_LOOK_SECONDS = 1.0
"""How often the loop looks whether the server still exists."""
_MOST_EVENTS = 256
"""That a round is held open for; each call is three, or four if it outlasts its round."""

_NAMES = (
    "_ServerStage",
    "_begin_shutdown_once",
    "_process_event_and_continue",
    "_request_call",
    "_request_registered_call",
)


def is_supported() -> bool:
    """Tell whether the runtime has what this module needs of it."""
    has_calls = hasattr(cygrpc.Server, "request_registered_call") and hasattr(cygrpc.Server, "register_method")
    return has_calls and all(hasattr(runtime, name) for name in _NAMES)


class Rounds:
    """Serves a server's calls.

    Args:
        server: As ``grpc.server`` made it, not started yet.
        method: Full name of the method whose calls are taken.
        take: Called in the serving thread with the core's event of a call; returns what an event's tag will return,
            beside an empty tuple, when the call is over. Other events of the call return ``None`` beside it.
        end_round: Called in the serving thread when nothing more is there to be read, if a round is open.
        is_round_open: Whether something waits for the end of the round.
    """

    def __init__(
        self,
        server: Server,
        *,
        method: str,
        take: Callable[[Any], object],
        end_round: Callable[[], None],
        is_round_open: Callable[[], bool],
    ) -> None:
        self._state = server._state
        self._method = method
        self._take = take
        self._end_round = end_round
        self._is_round_open = is_round_open
        self._state.server.register_method(method)

    def start(self) -> None:
        """Start the server, whose ports are bound."""
        state = self._state
        with state.lock:
            state.server.start()
            state.stage = runtime._ServerStage.STARTED
            for method in state.registered_method_handlers:
                runtime._request_registered_call(state, method)
            runtime._request_call(state)
            # What is asked for is due like a call is: without either the server is at its end.
            state.rpc_states.add(self)
            self._request()
        threading.Thread(target=self._serve, name="grpc-loop", daemon=True).start()

    def _request(self) -> None:
        queue = self._state.completion_queue
        self._state.server.request_registered_call(queue, queue, self._method, self._arrived)

    def _arrived(self, event: Any) -> tuple[object | None, tuple[()]]:
        state = self._state
        with state.lock:
            if event.success:
                state.rpc_states.add(self._take(event))
            if event.success and state.stage is runtime._ServerStage.STARTED:
                self._request()
                return None, ()
        return self, ()

    def _serve(self) -> None:
        state = self._state
        events = 0
        while True:
            is_open = self._is_round_open()
            events = events + 1 if is_open else 0
            # What has passed already is a moment for which nobody waits.
            event = state.completion_queue.poll(0 if is_open else time.time() + _LOOK_SECONDS)
            if state.server_deallocated:
                runtime._begin_shutdown_once(state)
            is_pause = event.completion_type == cygrpc.CompletionType.queue_timeout
            if is_open and (is_pause or events >= _MOST_EVENTS):
                self._end_round()
            if not is_pause and not runtime._process_event_and_continue(state, event):
                if self._is_round_open():
                    self._end_round()
                return
            # The runtime spins if an event that holds a finished call is still there when the next one is awaited.
            event = None
