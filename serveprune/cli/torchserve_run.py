import re
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Annotated
from zipfile import is_zipfile

import typer

from serveprune.cli.console import progress_console
from serveprune.cli.endpoints_file import addresses_announced
from serveprune.cli.interruption import interruption
from serveprune.cli.torchserve_options import address_of, size_of
from serveprune.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from serveprune.handlers.torchserve.hosting.addresses import Addresses
from serveprune.handlers.torchserve.hosting.java_process import KEY_FILE, JavaProcess
from serveprune.handlers.torchserve.hosting.readiness import Watch
from serveprune.handlers.torchserve.hosting.settings_files import RunSettings
from serveprune.handlers.torchserve.metrics_file import write_metrics_file
from serveprune.handlers.torchserve.settings import DEFAULT_MESSAGE_BYTES

_POLL_SECONDS = 0.25
_EXIT_INTERRUPTED = 130
_SUFFIX = ".mar"
_PROPERTY = re.compile(r"(?P<name>[A-Za-z_][\w.]*)=(?P<value>.*)")
_MESSAGE_BYTES = str(DEFAULT_MESSAGE_BYTES)


def run(
    model_store: Annotated[Path, typer.Option(help="Folder of the archives.")] = Path("store"),
    model: Annotated[
        list[str] | None, typer.Option(help="Name of an archive to load; may be repeated. Default: all there are.")
    ] = None,
    inference: Annotated[str, typer.Option(help="host:port of the inference API.")] = "127.0.0.1:8080",
    management: Annotated[str, typer.Option(help="host:port of the management API.")] = "127.0.0.1:8081",
    metrics: Annotated[str, typer.Option(help="host:port of the metrics.")] = "127.0.0.1:8082",
    grpc: Annotated[str, typer.Option(help="host:port of inference over gRPC.")] = "127.0.0.1:7070",
    grpc_management: Annotated[str, typer.Option(help="host:port of management over gRPC.")] = "127.0.0.1:7071",
    token_auth: Annotated[bool, typer.Option(help="Whether calls have to show a token.")] = True,
    model_api: Annotated[bool, typer.Option(help="Whether calls may register and unregister models.")] = False,
    folder: Annotated[
        Path | None,
        typer.Option(help="Where settings, logs and the file with the tokens go. Default: a temporary one."),
    ] = None,
    metrics_config: Annotated[
        Path | None, typer.Option(help="A metrics.yaml. Default: what `serveprune torchserve metrics` writes.")
    ] = None,
    metrics_page: Annotated[
        str | None,
        typer.Option(help="host:port of the first worker's page with all our metrics; others follow. Default: none."),
    ] = None,
    max_request_bytes: Annotated[str, typer.Option(help="Largest request, such as 16MiB.")] = _MESSAGE_BYTES,
    max_response_bytes: Annotated[str, typer.Option(help="Largest answer, such as 16MiB.")] = _MESSAGE_BYTES,
    further: Annotated[
        list[str] | None,
        typer.Option(
            "--property", metavar="NAME=VALUE", help="A line more in config.properties, such as job_queue_size=500."
        ),
    ] = None,
    ready_seconds: Annotated[
        float, typer.Option(min=1, help="How long the workers may take to load their models.")
    ] = 900.0,
    endpoints_file: Annotated[
        Path | None,
        typer.Option(help="Write the addresses there as JSON once the workers are ready; removed at the end."),
    ] = None,
) -> None:
    """Run a TorchServe over archives, and stop it with all its processes on Ctrl-C or SIGTERM.

    Addresses with port 0 take any free one.
    """
    models = _models(model_store, model)
    named = {
        "inference": inference,
        "management": management,
        "metrics": metrics,
        "grpc": grpc,
        "grpc_management": grpc_management,
    }
    addresses = Addresses(**{name: address_of(text, option=name) for name, text in named.items()})
    with interruption() as interrupted, _folder(folder, holds_tokens=token_auth) as place:
        metrics_file = metrics_config or place / "metrics.yaml"
        if metrics_config is None:
            write_metrics_file(metrics_file)
        elif not metrics_config.is_file():
            raise NotFound(f"--metrics-config {metrics_config}: no such file")
        settings = RunSettings(
            model_store=model_store,
            models=models,
            addresses=addresses.settled(),
            token_auth=token_auth,
            model_api=model_api,
            metrics_file=metrics_file,
            max_request_bytes=size_of(max_request_bytes, option="max_request_bytes"),
            max_response_bytes=size_of(max_response_bytes, option="max_response_bytes"),
            metrics_page=None if metrics_page is None else address_of(metrics_page, option="metrics_page"),
            further=_properties(further or []),
        )
        process = JavaProcess(settings, folder=place)
        try:
            code = _served(process, settings, place, interrupted, ready_seconds, endpoints_file)
        finally:
            process.stop()
    raise typer.Exit(code)


def _served(
    process: JavaProcess,
    settings: RunSettings,
    folder: Path,
    interrupted: Event,
    ready_seconds: float,
    endpoints_file: Path | None,
) -> int:
    """Follow a TorchServe until it is to stop; return the exit code."""
    watch = Watch(settings.addresses.management, folder=folder, token_auth=settings.token_auth)
    if not _is_ready(process, watch, settings.models, interrupted, seconds=ready_seconds):
        return _EXIT_INTERRUPTED
    announced = settings.addresses.texts() | ({"key_file": str(folder / KEY_FILE)} if settings.token_auth else {})
    with addresses_announced(announced, endpoints_file):
        _show(settings, folder)
        ended = process.wait(interrupted)
    if ended is not None:
        raise FailedPrecondition(f"TorchServe ended by itself, with {ended}: {watch.last_error()}")
    return 0


def _is_ready(
    process: JavaProcess, watch: Watch, models: tuple[str, ...], interrupted: Event, *, seconds: float
) -> bool:
    """Wait until all workers have loaded their models; return ``False`` if it is to stop before."""
    deadline = time.monotonic() + seconds
    waiting = list(models)
    while waiting:
        if interrupted.wait(_POLL_SECONDS):
            return False
        if (code := process.exit_code()) is not None:
            raise FailedPrecondition(f"TorchServe ended at its start, with {code}: {watch.last_error()}")
        watch.expect_hope()
        try:
            if watch.standing(waiting[0]).is_ready:
                waiting.pop(0)
                continue
        except Unavailable:
            pass  # not yet
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                f"the workers of {waiting[0]} are not ready after {seconds:g} s (--ready-seconds): {watch.last_error()}"
            )
    return True


def _show(settings: RunSettings, folder: Path) -> None:
    addresses = settings.addresses
    lines = [
        f"TorchServe serves {', '.join(settings.models)}",
        f"inference http://{addresses.inference}  gRPC {addresses.grpc}",
        f"management http://{addresses.management}  gRPC {addresses.grpc_management}",
        f"metrics http://{addresses.metrics}/metrics",
    ]
    if settings.token_auth:
        lines.append(f"tokens {folder / KEY_FILE}")
    lines.append(f"logs {folder / 'logs'}")
    console = progress_console()
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _models(store: Path, named: list[str] | None) -> tuple[str, ...]:
    found = sorted(file.name.removesuffix(_SUFFIX) for file in store.glob(f"*{_SUFFIX}"))
    if not found:
        raise NotFound(
            f"--model-store {store}: expected archives (NAME.mar), got none; "
            "`serveprune torchserve package` writes them"
        )
    missing = [name for name in named or [] if name not in found]
    if missing:
        raise NotFound(f"--model: expected some of {', '.join(found)}, got {missing[0]!r}")
    chosen = tuple(dict.fromkeys(named)) if named else tuple(found)
    # TorchServe would take any file for an archive, an empty one.
    damaged = [file for name in chosen if not is_zipfile(file := store / f"{name}{_SUFFIX}")]
    if damaged:
        raise FailedPrecondition(
            f"{damaged[0]}: expected an archive as torch-model-archiver writes it, got another file"
        )
    return chosen


def _properties(texts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        match = _PROPERTY.fullmatch(text)
        if match is None or match["name"] in found:
            raise InvalidArgument(f"--property: expected NAME=VALUE, and each name once, got {text!r}")
        found[match["name"]] = match["value"]
    return found


@contextmanager
def _folder(given: Path | None, *, holds_tokens: bool) -> Iterator[Path]:
    """Give a folder that nobody else may read if it will hold tokens."""
    if given is None:
        with tempfile.TemporaryDirectory(prefix="serveprune-torchserve-", ignore_cleanup_errors=True) as temporary:
            yield Path(temporary)
        return
    try:
        given.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise FailedPrecondition(f"--folder {given}: cannot be made: {error.strerror}") from error
    mode = stat.S_IMODE(given.stat().st_mode)
    if holds_tokens and mode & 0o077:
        raise FailedPrecondition(
            f"--folder {given}: expected a folder that is closed to all but its owner, for it will hold tokens, got "
            f"mode {mode:o}; chmod 700, or name one that does not exist yet"
        )
    yield given.absolute()
