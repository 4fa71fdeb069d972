import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from serveprune.cli.config_diff import diff
from serveprune.cli.config_reload import config_reload
from serveprune.config.loading import load_config
from serveprune.config.root import ServePruneConfig
from serveprune.config.schema import config_schema
from serveprune.errors import ConfigError
from serveprune.preflight import check_datasets, check_packages, check_secrets

_EXIT_BAD_INPUT = 2
_SPREAD = ("canary", "stable", "split", "shadow", "sticky")
"""Keys of a deployment that few have; shown where they are set."""

config_app = typer.Typer(no_args_is_help=True)


@config_app.command()
def check(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The serveprune.yaml to check.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Report everything that is wrong with a configuration and its data sets, starting nothing."""
    loaded, problems = _judged(config)
    if as_json:
        models = _models(loaded) if loaded is not None else []
        typer.echo(json.dumps({"ok": not problems, "problems": problems, "models": models}, indent=2))
    elif loaded is None or problems:
        typer.echo("\n".join(problems))
        typer.echo(f"{len(problems)} {'problem' if len(problems) == 1 else 'problems'} in {config}", err=True)
    else:
        typer.echo("ok")
        Console().print(_table(loaded))
    if problems:
        raise typer.Exit(_EXIT_BAD_INPUT)


@config_app.command()
def schema() -> None:
    """Print the JSON Schema of serveprune.yaml."""
    typer.echo(json.dumps(config_schema(), indent=2))


config_app.command()(diff)
config_app.command("reload")(config_reload)


def _judged(path: Path) -> tuple[ServePruneConfig | None, list[str]]:
    try:
        config = load_config(path)
    except ConfigError as error:
        return None, list(error.problems)
    return config, [*check_secrets(config), *check_packages(config), *check_datasets(config)]


def _models(config: ServePruneConfig) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "version": version,
            "source": next(iter(model.source.model_dump())),
            **_deployment(config, name),
            "tiers": [{"tier": tier, **_profile(config, tier)} for tier in model.tiers],
        }
        for (name, version), model in config.served().items()
    ]


def _deployment(config: ServePruneConfig, model: str) -> dict[str, Any]:
    deployment = config.deployment(model)
    spread = deployment.model_dump(mode="json", include=set(_SPREAD), exclude_none=True)
    if deployment.policy == "fixed":
        return {"policy": deployment.policy, "default_tier": deployment.default_tier, **spread}
    return {**deployment.model_dump(mode="json", exclude=set(_SPREAD)), **spread}


def _profile(config: ServePruneConfig, tier: str) -> dict[str, Any]:
    profile = config.profile(tier)
    if profile is None:
        return {"passes": [], "gate": {}}
    return {
        "passes": [{step.name: step.options.model_dump(mode="json")} for step in profile.passes],
        "gate": profile.gate.model_dump(mode="json", exclude_none=True),
    }


def _table(config: ServePruneConfig) -> Table:
    table = Table()
    for column in ("model", "version", "source", "tier", "passes", "gate"):
        table.add_column(column, overflow="fold")
    for model in _models(config):
        for tier in model["tiers"]:
            name = f"{tier['tier']} (default)" if tier["tier"] == model.get("default_tier") else tier["tier"]
            passes = ", ".join(_call(step, options) for entry in tier["passes"] for step, options in entry.items())
            gate = ", ".join(f"{condition} {value:g}" for condition, value in tier["gate"].items())
            table.add_row(*map(escape, (model["name"], model["version"], model["source"], name, passes, gate)))
        table.add_section()
    return table


def _call(step: str, options: dict[str, Any]) -> str:
    return f"{step}({', '.join(f'{name}={value}' for name, value in options.items() if value not in ([], None))})"
