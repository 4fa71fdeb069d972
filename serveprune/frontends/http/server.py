from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from serveprune.config.server import Address, ServerConfig
from serveprune.errors import Code
from serveprune.frontends.authorization import Authorization
from serveprune.frontends.certificates import ServerCertificate
from serveprune.frontends.http.application import HttpApplication
from serveprune.frontends.http.direct_inference import DirectInference
from serveprune.frontends.http.endpoint import HttpEndpoint
from serveprune.frontends.http.observation import HttpObservation
from serveprune.frontends.planes import ControlPlane, DataPlane
from serveprune.frontends.watched_files import WatchedFiles
from serveprune.observability.request_observer import RequestObserver

_WORKERS = 4
"""Threads that decode and encode large bodies; each may hold several times a body's size."""


class HttpFrontend:
    """The Open Inference Protocol over HTTP, on an event loop in a thread of its own.

    Args:
        dataplane: Answers inference and metadata requests.
        controlplane: Answers the repository index, and what tiers there are.
        config: Address and limits.
        on_rejected: Told the code of each inference request that fails to reach the data plane.
        certificate: For TLS; without one nothing is encrypted.
        authorization: Judges who may ask; without one everybody may.
        observer: Records inferences.
    """

    def __init__(
        self,
        dataplane: DataPlane,
        controlplane: ControlPlane,
        *,
        config: ServerConfig,
        on_rejected: Callable[[Code], None],
        certificate: WatchedFiles[ServerCertificate] | None = None,
        authorization: Authorization | None = None,
        observer: RequestObserver | None = None,
    ) -> None:
        self._config = config
        observation = HttpObservation(observer, encrypted=certificate is not None) if observer is not None else None
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="http-worker")
        application = HttpApplication(
            dataplane,
            controlplane,
            config=config,
            workers=self._workers,
            on_rejected=on_rejected,
            authorization=authorization,
            observation=observation,
        )
        self._endpoint = HttpEndpoint(
            application,
            DirectInference(application.inference, authorization=authorization, observation=observation),
            setting="server.http",
            limits=config,
            certificate=certificate,
        )

    def start(self) -> Address:
        """Begin to serve and return where, with the real port.

        Raises:
            FailedPrecondition: The address cannot be listened on.
        """
        return self._endpoint.start(self._config.http, shared=self._config.processes > 1)

    def stop(self, *, drain_seconds: float) -> None:
        """Stop accepting, finish what is in flight for so long at the most, then close; idempotent."""
        self._endpoint.stop(drain_seconds=drain_seconds)
        self._workers.shutdown(wait=False, cancel_futures=True)
