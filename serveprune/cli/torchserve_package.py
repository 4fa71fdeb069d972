from pathlib import Path
from typing import Annotated

import typer

from serveprune.cli.torchserve_options import address_of, size_of
from serveprune.config.loading import load_config
from serveprune.config.model import ModelConfig
from serveprune.config.root import ServePruneConfig
from serveprune.errors import ConfigError, InvalidArgument, NotFound
from serveprune.handlers.torchserve.archiving.archive import Frontend, write_archive
from serveprune.handlers.torchserve.archiving.content import of_the_store
from serveprune.preflight import check_datasets, check_packages


def package(
    config: Annotated[Path, typer.Option(help="The serveprune.yaml.")] = Path("serveprune.yaml"),
    model: Annotated[str | None, typer.Option(help="Its name there. Default: the only one.")] = None,
    version: Annotated[str | None, typer.Option(help="Which of its versions. Default: the highest served.")] = None,
    out: Annotated[Path, typer.Option(help="TorchServe's model store; made if need be.")] = Path("store"),
    workers: Annotated[int, typer.Option(min=1, help="Processes that serve the model, each with all its tiers.")] = 1,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Requests handed over at once. Default: the model's max_batch_size.")
    ] = None,
    max_batch_delay_ms: Annotated[
        int | None,
        typer.Option(
            min=0, help="How long a batch waits to be full. Default: the model's max_queue_delay_ms, 1 at the least."
        ),
    ] = None,
    response_timeout_seconds: Annotated[
        int, typer.Option(min=1, help="TorchServe kills a worker that takes longer for a batch.")
    ] = 120,
    max_response_bytes: Annotated[
        str | None,
        typer.Option(help="Largest answer, if your TorchServe's max_response_size is another than its default."),
    ] = None,
    metrics_page: Annotated[
        str | None,
        typer.Option(help="host:port of the first worker's page with all our metrics; others follow. Default: none."),
    ] = None,
    by_reference: Annotated[
        bool,
        typer.Option(
            "--by-reference", help="Leave the model's own files out: its graph is taken from the artifact store."
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an archive of that name.")] = False,
) -> None:
    """Write an archive for TorchServe: a model with its files, its tiers and where their artifacts are."""
    loaded = load_config(config)
    name, chosen = _chosen(loaded, model, version=version)
    _check(loaded, name=name, model=chosen)
    frontend = Frontend(
        workers=workers,
        batch_size=batch_size,
        max_batch_delay_ms=max_batch_delay_ms,
        response_timeout_seconds=response_timeout_seconds,
    )
    if by_reference:
        chosen = of_the_store(loaded, chosen, name=name)
    handler: dict[str, int | str] = {}
    if max_response_bytes is not None:
        handler["max_response_bytes"] = size_of(max_response_bytes, option="max_response_bytes")
    if metrics_page is not None:
        handler["metrics"] = str(address_of(metrics_page, option="metrics_page"))
    archive = write_archive(loaded, chosen, name=name, out=out, frontend=frontend, handler=handler, replace=force)
    typer.echo(f"{archive}: {name} {chosen.version}, tiers {', '.join(chosen.tiers)}; artifacts in {loaded.store.path}")


def _chosen(config: ServePruneConfig, model: str | None, *, version: str | None) -> tuple[str, ModelConfig]:
    if model is None:
        if len(config.models) != 1:
            raise InvalidArgument(f"--model: expected one of {', '.join(config.models) or 'none'}, got nothing")
        (model,) = config.models
    if model not in config.models:
        raise NotFound(f"--model: expected one of {', '.join(config.models) or 'none'}, got {model!r}")
    if version is None:
        return model, config.model(model)
    versions = config.models[model].by_version
    if version not in versions:
        raise NotFound(f"--version: expected one of {', '.join(versions)} of {model}, got {version!r}")
    return model, versions[version]


def _check(config: ServePruneConfig, *, name: str, model: ModelConfig) -> None:
    """Report now what would keep every worker from starting."""
    entry = config.models[name].model_copy(
        update={**{field: getattr(model, field) for field in ModelConfig.model_fields}, "versions": {}}
    )
    alone = config.model_copy(update={"models": {name: entry}})
    if problems := [*check_packages(alone), *check_datasets(alone)]:
        raise ConfigError(problems)
