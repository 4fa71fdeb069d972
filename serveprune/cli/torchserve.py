import typer

from serveprune.cli.torchserve_metrics import metrics
from serveprune.cli.torchserve_package import package
from serveprune.cli.torchserve_run import run

torchserve_app = typer.Typer(no_args_is_help=True)
torchserve_app.command()(package)
torchserve_app.command()(run)
torchserve_app.command()(metrics)
