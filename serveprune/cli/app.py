"""The command line: one file per command."""

import sys

import typer

from serveprune import __version__
from serveprune.cli.cache import cache_app
from serveprune.cli.compress import compress
from serveprune.cli.config import config_app
from serveprune.cli.demo import demo
from serveprune.cli.health import health
from serveprune.cli.infer import infer
from serveprune.cli.lottery import lottery
from serveprune.cli.plan import plan
from serveprune.cli.rollout import rollout_app
from serveprune.cli.sensitivity import sensitivity
from serveprune.cli.serve import serve
from serveprune.cli.tiers import tiers
from serveprune.cli.torchserve import torchserve_app
from serveprune.errors import ServePruneError

EXIT_FAILURE = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="serveprune",
    help="Serve neural networks at several compression tiers, made and measured on the fly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve)
app.command()(compress)
app.command()(plan)
app.command()(sensitivity)
app.command()(lottery)
app.command()(tiers)
app.command()(infer)
app.command()(health)
app.add_typer(cache_app, name="cache", help="Look at the artifact store and keep it tidy.")
app.add_typer(
    config_app,
    name="config",
    help="Check a configuration, compare two, have a server read its own, or print the schema.",
)
app.add_typer(rollout_app, name="rollout", help="See how canaries of a running server stand, and move them.")
app.add_typer(torchserve_app, name="torchserve", help="Serve tiers inside TorchServe: write archives, and run it.")
app.command()(demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"serveprune {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main() -> None:
    """Run the command line; errors a user can mend end in one message and an exit code, not in a trace."""
    try:
        app()
    except ServePruneError as error:
        print(f"error: {error.message}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT if error.is_bad_input else EXIT_FAILURE)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
