import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serveprune.errors import DeadlineExceeded, Unavailable
from serveprune.handlers.ray_serve.failure import Failure
from serveprune.handlers.ray_serve.open_artifacts import Loaded
from serveprune.oip.tensor import Array, TensorSpec

_log = logging.getLogger(__name__)

_OPEN_SECONDS = 3600.0
"""A replica may have to wait for a node that is started for it."""

_REMIND_SECONDS = 60.0
_RETRY_SECONDS = 1.0


class RemoteSession:
    """A graph that the replicas of a deployment run; see `backends.protocol.Session`.

    A batch whose replica dies is given to another one, a few times: an inference changes nothing, so that it may be
    computed twice does no harm.
    """

    computes_in_caller = False

    def __init__(
        self, handle: DeploymentHandle, loaded: Loaded, *, name: str, max_retries: int, timeout_seconds: float
    ) -> None:
        """Have a replica load the graph; waits until there is one.

        Args:
            handle: Of the deployment.
            loaded: The artifact and its backend.
            name: Of the deployment, for messages.
            max_retries: Of one batch.
            timeout_seconds: Of one try.

        Raises:
            ServePruneError: The replica cannot load it.
            Unavailable: No replica was started for an hour.
        """
        self._handle, self._loaded, self._name = handle, loaded, name
        self._max_retries, self._timeout_seconds = max_retries, timeout_seconds
        self.inputs, self.outputs = self._open()

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
        """See `Session.run`.

        Raises:
            Unavailable: Replica after replica died with it.
            DeadlineExceeded: None answered in time.
        """
        for attempt in range(self._max_retries + 1):
            response = self._handle.run.remote(*self._loaded, dict(feeds), tuple(outputs))
            try:
                answers: list[Array] = _given(response.result(timeout_s=self._timeout_seconds))
            except TimeoutError:
                response.cancel()
                raise DeadlineExceeded(
                    f"{self._name}: no replica answered within {self._timeout_seconds:g} s"
                ) from None
            except (RayActorError, DeploymentUnavailableError) as error:
                _log.warning("%s: a replica died with a batch (try %d): %s", self._name, attempt + 1, error)
            else:
                return answers
        raise Unavailable(
            f"{self._name}: {self._max_retries + 1} replicas died with this batch; retry later",
            retry_after_seconds=_RETRY_SECONDS,
        )

    def close(self) -> None:
        """Do nothing: other ingress replicas may use the graph. Replicas let go of what nobody uses."""

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        begun = time.monotonic()
        while time.monotonic() - begun < _OPEN_SECONDS:
            response = self._handle.open.remote(*self._loaded)
            try:
                inputs, outputs = _given(response.result(timeout_s=_REMIND_SECONDS))
            except TimeoutError:
                response.cancel()
                _log.warning("%s: still waiting for a replica; has the cluster room for it?", self._name)
            except (RayActorError, DeploymentUnavailableError) as error:
                _log.warning("%s: a replica died while it loaded %s: %s", self._name, self._loaded.key, error)
                time.sleep(_RETRY_SECONDS)
            else:
                return inputs, outputs
        raise Unavailable(f"{self._name}: no replica was started within {_OPEN_SECONDS:g} s")


def _given(result: Any) -> Any:
    if isinstance(result, Failure):
        raise result.error()
    return result
