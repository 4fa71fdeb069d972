import threading
from typing import Any

import grpc

from serveprune.frontends.certificates import ServerCertificate
from serveprune.frontends.watched_files import WatchedFiles


def server_credentials(certificate: WatchedFiles[ServerCertificate]) -> Any:
    """Return credentials with which the runtime gives each new connection the certificate that is current then."""
    given = certificate.current
    lock = threading.Lock()

    def changed() -> Any:
        # Asked before each handshake. To give the same one again would have the runtime parse it each time.
        nonlocal given
        with lock:
            if certificate.current is given:
                return None
            given = certificate.current
            return _configuration(given)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(given), changed, require_client_authentication=given.client_ca is not None
    )


def _configuration(certificate: ServerCertificate) -> Any:
    return grpc.ssl_server_certificate_configuration(
        [(certificate.key, certificate.chain)], root_certificates=certificate.client_ca
    )
