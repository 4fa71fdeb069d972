import sys
from pathlib import Path

import pytest

from serveprune.building import ServingOnlyBuilder
from serveprune.config.root import ServePruneConfig
from serveprune.errors import Internal
from serveprune.supervision import supervisor
from serveprune.supervision.restart_policy import RestartPolicy
from serveprune.supervision.supervisor import Supervisor

DEAF = """
import signal, socket, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
socket.socket(fileno=int(sys.argv[1])).close()
time.sleep(600)
"""


def test_process_that_is_deaf_and_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(supervisor, "_STOP_MARGIN_SECONDS", 0.2)
    config = ServePruneConfig.model_validate(
        {
            "store": {"path": tmp_path / "store"},
            "server": {
                **dict.fromkeys(("http", "grpc", "metrics"), "127.0.0.1:0"),
                "processes": 2,
                "drain_seconds": 0.1,
            },
            "models": {"boots": {"source": {"onnx": __file__}}},
        }
    )
    server = Supervisor(
        config,
        command=[sys.executable, "-c", DEAF],
        make_builder=lambda on_event: ServingOnlyBuilder(),
        policy=RestartPolicy(early_deaths=1),
    )
    with pytest.raises(Internal, match="was killed by SIGKILL"):
        server.start()
