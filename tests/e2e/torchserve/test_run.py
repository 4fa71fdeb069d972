import re
import signal
import socket
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from contract.cases import identity_model
from prometheus_client.parser import text_string_to_metric_families

from e2e.deployment import write_config
from e2e.graphs import write_contract_models
from e2e.server_process import PATIENCE_SECONDS, wait_until
from e2e.torchserve.hosted import HostedTorchServe, command, package
from serveprune.oip.datatype import Datatype

MODEL = identity_model(Datatype.FP32)
ROWS = {"x": [[1.5, 2.5]]}


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an archive of a tiny model, and its artifacts. Only ever copied."""
    folder = tmp_path_factory.mktemp("run")
    write_contract_models(folder)
    config = write_config(folder, models={MODEL: {"source": {"onnx": f"{MODEL}.onnx"}}})
    package(config, MODEL)
    return folder


@pytest.fixture(scope="module")
def hosted(packaged: Path) -> Iterator[HostedTorchServe]:
    with HostedTorchServe(packaged) as running:
        yield running.wait_ready()


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for temporary files: TorchServe's sockets would have too long a name where those of tests lie."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_model_answers_when_its_workers_are_said_to_be_ready(hosted: HostedTorchServe) -> None:
    answer = hosted.ask(MODEL, json=ROWS)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"y": [[1.5, 2.5]]}
    assert answer.headers["x-compression-tier"] == "dense"


def test_logs_have_no_lines_of_single_requests(hosted: HostedTorchServe) -> None:
    logs = sorted((hosted.folder / "ran" / "logs").iterdir())
    assert {file.name for file in logs} == {"console.log", "torchserve.log", "workers.log"}
    before = [file.read_text(encoding="utf-8") for file in logs]
    for rows in [ROWS, {"x": "wrong"}] * 3:
        hosted.ask(MODEL, json=rows)
    assert [file.read_text(encoding="utf-8") for file in logs] == before
    assert "Torch worker started" in before[2]


def test_calls_without_the_token_are_refused(hosted: HostedTorchServe) -> None:
    assert hosted.ask(MODEL, json=ROWS, token="wrong").status_code == 400
    management = f"http://{hosted.endpoints['management']}/models"
    assert httpx.get(management, trust_env=False).status_code == 400
    headers = {"Authorization": f"Bearer {hosted.keys['management']}"}
    assert httpx.get(management, headers=headers, trust_env=False).status_code == 200


def test_tokens_can_be_read_by_the_owner_only(hosted: HostedTorchServe) -> None:
    place = Path(hosted.endpoints["key_file"])
    assert f"tokens {place}" in hosted.log
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700


def test_everything_listens_on_loopback_only(hosted: HostedTorchServe) -> None:
    (java,) = (psutil.Process(pid) for pid in hosted.processes() if psutil.Process(pid).name() == "java")
    listening = {each.laddr for each in java.net_connections("tcp") if each.status == psutil.CONN_LISTEN}
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    ports = {int(text.rpartition(":")[2]) for name, text in hosted.endpoints.items() if name != "key_file"}
    assert ports <= {address.port for address in listening}


def test_metrics_are_torchserves_and_those_that_the_handler_may_report(hosted: HostedTorchServe) -> None:
    hosted.ask(MODEL, json=ROWS)
    text = httpx.get(f"http://{hosted.endpoints['metrics']}/metrics", trust_env=False).text
    families = {family.name for family in text_string_to_metric_families(text)}
    assert "ts_inference_requests" in families
    declared = (hosted.folder / "ran" / "metrics.yaml").read_text(encoding="utf-8")
    assert "name: serveprune_requests_total" in declared
    log = (hosted.folder / "ran" / "logs" / "torchserve.log").read_text(encoding="utf-8")
    assert "ERROR" not in log


def test_logs_are_quiet(hosted: HostedTorchServe) -> None:
    for _ in range(20):
        hosted.ask(MODEL, json=ROWS)
    logs = {file.name: file.read_text(encoding="utf-8") for file in (hosted.folder / "ran" / "logs").iterdir()}
    assert set(logs) == {"console.log", "torchserve.log", "workers.log"}
    assert not [line for text in logs.values() for line in text.splitlines() if "/predictions/" in line]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_when_it_is_stopped(
    packaged: Path, tmp_path: Path, short_folder: Path, number: signal.Signals
) -> None:
    with HostedTorchServe(_copied(packaged, tmp_path), environment={"TMPDIR": str(short_folder)}) as running:
        running.wait_ready()
        ports = [text for name, text in running.endpoints.items() if name != "key_file"]
        assert len(running.processes()) >= 3
        assert running.stop(number) == 0
        assert running.processes() == []
    assert list(short_folder.iterdir()) == []
    for address in ports:
        with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
            pass
    assert not (tmp_path / "endpoints.json").exists()


def test_nothing_is_left_when_it_is_stopped_before_it_is_ready(packaged: Path, tmp_path: Path) -> None:
    with HostedTorchServe(_copied(packaged, tmp_path)) as running:
        wait_until(lambda: len(running.processes()) >= 2, what="Java runs")
        assert running.stop() == 130
        assert running.processes() == []


def test_nothing_is_left_when_it_is_killed(packaged: Path, tmp_path: Path) -> None:
    with HostedTorchServe(_copied(packaged, tmp_path)) as running:
        running.wait_ready()
        running.stop(signal.SIGKILL)
        wait_until(lambda: not running.processes(), what="TorchServe is gone", seconds=60)


def test_end_of_java_ends_it_with_an_error_and_leaves_no_worker(packaged: Path, tmp_path: Path) -> None:
    with HostedTorchServe(_copied(packaged, tmp_path)) as running:
        running.wait_ready()
        (java,) = (psutil.Process(pid) for pid in running.processes() if psutil.Process(pid).name() == "java")
        java.kill()
        assert running.process.wait(PATIENCE_SECONDS) == 2
        assert "TorchServe ended by itself, with -9" in running.log
        assert running.processes() == []


def test_tokens_are_not_needed_when_they_are_switched_off(packaged: Path, tmp_path: Path) -> None:
    with HostedTorchServe(_copied(packaged, tmp_path), "--no-token-auth") as running:
        running.wait_ready()
        assert "key_file" not in running.endpoints
        assert running.ask(MODEL, json=ROWS).status_code == 200


def test_sizes_page_of_metrics_and_further_properties_are_what_was_asked_for(packaged: Path, tmp_path: Path) -> None:
    options = ["--max-request-bytes", "100KiB", "--max-response-bytes", "1000", "--metrics-page", "127.0.0.1:0"]
    with HostedTorchServe(_copied(packaged, tmp_path), *options, "--property", "job_queue_size=7") as running:
        running.wait_ready()
        assert running.ask(MODEL, json=ROWS).status_code == 200
        large = running.ask(MODEL, json={"x": [[0.25] * 2] * 500})
        assert large.status_code == 413, large.text
        assert "TorchServe takes 1000" in large.json()["error"]
        assert running.ask(MODEL, json={"x": [[0.25] * 2] * 20_000}).status_code == 413
        assert running.ask(MODEL, json=ROWS).status_code == 200
        log = (tmp_path / "ran" / "logs" / "workers.log").read_text(encoding="utf-8")
        (page,) = re.findall(r"metrics of this worker at (\S+)", log)
        assert "serveprune_requests_total" in httpx.get(page, trust_env=False).text
    assert "job_queue_size=7" in (tmp_path / "ran" / "config.properties").read_text(encoding="ascii")


def test_two_workers_are_waited_for(packaged: Path, tmp_path: Path) -> None:
    folder = _copied(packaged, tmp_path)
    package(folder / "serveprune.yaml", MODEL, "--workers", "2", "--force")
    with HostedTorchServe(folder) as running:
        running.wait_ready()
        headers = {"Authorization": f"Bearer {running.keys['management']}"}
        url = f"http://{running.endpoints['management']}/models/{MODEL}"
        workers = httpx.get(url, headers=headers, trust_env=False).json()[0]["workers"]
        assert [worker["status"] for worker in workers] == ["READY", "READY"]


def test_reason_is_told_when_a_worker_cannot_load_its_model(packaged: Path, tmp_path: Path) -> None:
    folder = _copied(packaged, tmp_path)
    archive = folder / "models" / f"{MODEL}.mar"
    with zipfile.ZipFile(archive) as opened:
        content = {name: opened.read(name) for name in opened.namelist()}
    content["model-config.yaml"] = content["model-config.yaml"].replace(b"tiers:", b"teirs:")
    with zipfile.ZipFile(archive, "w") as changed:
        for name, each in content.items():
            changed.writestr(name, each)
    with HostedTorchServe(folder) as running:
        assert running.process.wait(PATIENCE_SECONDS) == 2
        assert "a worker ends whenever it is started: ConfigError: model-config.yaml: handler.serveprune.teirs" in (
            running.log
        )
        assert running.processes() == []


def test_archive_without_a_manifest_is_told(packaged: Path, tmp_path: Path) -> None:
    folder = _copied(packaged, tmp_path)
    with zipfile.ZipFile(folder / "models" / f"{MODEL}.mar", "w") as archive:
        archive.writestr("model-config.yaml", "{}")
    with HostedTorchServe(folder) as running:
        assert running.process.wait(PATIENCE_SECONDS) == 2
        assert "error: " in running.log
        assert running.processes() == []


def test_taken_port_is_told(packaged: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        finished = command("run", "--model-store", "models", "--inference", address, folder=packaged)
    assert finished.returncode == 2
    assert f"error: --inference {address}: cannot be listened on: Address already in use" in finished.stderr


def test_missing_java_is_told(packaged: Path, tmp_path: Path) -> None:
    addresses = [word for name in ("inference", "management", "metrics") for word in (f"--{name}", "127.0.0.1:0")]
    finished = command(
        *("run", "--model-store", "models", *addresses, "--grpc", "127.0.0.1:0", "--grpc-management", "127.0.0.1:0"),
        folder=packaged,
        environment={"PATH": str(tmp_path), "JAVA_HOME": ""},
    )
    assert finished.returncode == 2
    assert "error: TorchServe runs on Java 17; expected `java` on the PATH, got none" in finished.stderr


def test_metrics_file_is_printed(packaged: Path) -> None:
    finished = command("metrics", folder=packaged)
    assert finished.returncode == 0, finished.stderr
    assert "name: serveprune_served_tier_total" in finished.stdout
    assert "name: HandlerTime" in finished.stdout


def _copied(packaged: Path, folder: Path) -> Path:
    """Lay out the same archive in a folder of the test's own."""
    for file in ("serveprune.yaml", f"{MODEL}.onnx", f"models/{MODEL}.mar"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes((packaged / file).read_bytes())
    return folder
