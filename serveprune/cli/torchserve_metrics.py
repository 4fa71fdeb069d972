from pathlib import Path
from typing import Annotated

import typer

from serveprune.errors import FailedPrecondition
from serveprune.handlers.torchserve.metrics_file import metrics_file


def metrics(
    out: Annotated[Path | None, typer.Option(help="File to write. Default: standard output.")] = None,
) -> None:
    """Write TorchServe's metrics.yaml, with serveprune's metrics as far as TorchServe can carry them."""
    content = metrics_file()
    if out is None:
        typer.echo(content, nl=False)
        return
    try:
        out.write_text(content, encoding="utf-8")
    except OSError as error:
        raise FailedPrecondition(f"--out {out}: cannot be written: {error.strerror}") from error
    typer.echo(out)
