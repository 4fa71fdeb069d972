"""The file that `torch-model-archiver --handler` puts into an archive: it leads to the handler that is installed."""

from serveprune.handlers.torchserve.handler import TierHandler


class ArchivedHandler(TierHandler):
    """The one class of its module, as TorchServe expects it."""
