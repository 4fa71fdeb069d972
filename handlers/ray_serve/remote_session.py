import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serveprune.errors import DeadlineExceeded, Unavailable
from serveprune.handlers.ray_serve.failure import Failure
from serveprune.handlers.ray_serve.open_artifacts import Loaded, OpenGraphs
from serveprune.oip.tensor import Array, TensorSpec

_log = logging.getLogger(__name__)

_OPEN_SECONDS = 5.0
"""Whoever brings variants up goes on to others, and comes back: a replica may have to wait for a node."""

_RETRY_SECONDS = 1.0

_DIED = (RayActorError, NodeDiedError, WorkerCrashedError, OutOfMemoryError, ObjectLostError)
"""What Ray says where a process or its node is gone, or the answer with it; a fault of the batch is none of these."""


class RemoteSession:
    """A graph that the replicas of a deployment run; see `backends.protocol.Session`.

    A batch whose replica dies is given to another one, a few times: an inference changes nothing, so that it may be
    computed twice does no harm.
    """

    computes_in_caller = False

    def __init__(
        self,
        handle: DeploymentHandle,
        loaded: Loaded,
        *,
        name: str,
        open_graphs: OpenGraphs,
        max_retries: int,
        timeout_seconds: float,
    ) -> None:
        """Have a replica load the graph.

        Args:
            handle: Of the deployment.
            loaded: The artifact and its backend.
            name: Of the deployment.
            open_graphs: Told for how long it is open.
            max_retries: Of one batch.
            timeout_seconds: Of one batch, all tries together.

        Raises:
            ServePruneError: The replica cannot load it.
            Unavailable: There is no replica, or it has not loaded the graph yet; to be tried again.
        """
        self._handle, self._loaded, self._name = handle, loaded, name
        self._open_graphs = open_graphs
        self._max_retries, self._timeout_seconds = max_retries, timeout_seconds
        self.inputs, self.outputs = self._open()
        self._is_closed = False
        open_graphs.add(name, loaded)

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
        """See `Session.run`.

        Raises:
            Unavailable: Replica after replica died with it, or the deployment has failed.
            DeadlineExceeded: None answered in time.
        """
        deadline = time.monotonic() + self._timeout_seconds
        for attempt in range(self._max_retries + 1):
            response = self._handle.run.remote(*self._loaded, dict(feeds), tuple(outputs))
            try:
                answers: list[Array] = _given(response.result(timeout_s=max(deadline - time.monotonic(), 0.0)))
            except TimeoutError:
                response.cancel()
                raise DeadlineExceeded(
                    f"{self._name}: no replica answered within {self._timeout_seconds:g} s"
                ) from None
            except DeploymentUnavailableError:
                raise _not_deployed(self._name) from None
            except _DIED as error:
                _log.warning("%s: a replica died with a batch (try %d): %s", self._name, attempt + 1, error)
            else:
                return answers
        raise Unavailable(
            f"{self._name}: {self._max_retries + 1} replicas died with this batch; retry later",
            retry_after_seconds=_RETRY_SECONDS,
        )

    def close(self) -> None:
        """Note that this process uses it no more: replicas let go of what no ingress has open."""
        if not self._is_closed:
            self._is_closed = True
            self._open_graphs.discard(self._name, self._loaded)

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        response = self._handle.open.remote(*self._loaded)
        try:
            inputs, outputs = _given(response.result(timeout_s=_OPEN_SECONDS))
        except TimeoutError:
            response.cancel()
            raise Unavailable(f"{self._name}: no replica has it loaded yet; has the cluster room for one?") from None
        except DeploymentUnavailableError:
            raise _not_deployed(self._name) from None
        except _DIED as error:
            _log.warning("%s: a replica died while it loaded %s: %s", self._name, self._loaded.key, error)
            raise Unavailable(f"{self._name}: a replica died while it loaded the graph; see Ray's log") from None
        return inputs, outputs


def _not_deployed(name: str) -> Unavailable:
    return Unavailable(f"{name}: Ray failed to deploy it; `serve status` says why", retry_after_seconds=_RETRY_SECONDS)


def _given(result: Any) -> Any:
    if isinstance(result, Failure):
        raise result.error()
    return result
