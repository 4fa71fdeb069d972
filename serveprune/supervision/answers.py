"""What serving processes ask the supervisor for: builds, changes of the repository, calls of operators."""

import logging
from concurrent.futures import Future

from serveprune.errors import Code, ServePruneError
from serveprune.frontends.http.operator_call import AskOperators, OperatorAnswer
from serveprune.serving.loadable_models import LoadableModels
from serveprune.supervision.messages import (
    BuildAsked,
    BuildEnded,
    BuildProgressed,
    ChangeAsked,
    ChangeEnded,
    Channel,
    OperatorAnswered,
    OperatorAsked,
)
from serveprune.supervision.shared_builds import SharedBuilds

_log = logging.getLogger(__name__)

_UNEXPECTED = "internal error; see the server's log"


class Answers:
    """Has it done, and tells whoever asked when it is. Thread-safe; nothing blocks.

    A process that died hears nothing: it asks again when it has been replaced.
    """

    def __init__(self, builds: SharedBuilds, loadable: LoadableModels, *, ask_operators: AskOperators) -> None:
        """Remember who does it.

        Args:
            builds: Of all processes.
            loadable: Loads and unloads models.
            ask_operators: Answers the calls that came through the page.
        """
        self._builds = builds
        self._loadable = loadable
        self._ask_operators = ask_operators

    def answer(self, asked: BuildAsked | ChangeAsked | OperatorAsked, channel: Channel) -> None:
        """Begin to answer what a process asked over its channel."""
        match asked:
            case BuildAsked():
                self._build(asked, channel)
            case ChangeAsked():
                self._change(asked, channel)
            case OperatorAsked():
                self._operate(asked, channel)

    def _build(self, asked: BuildAsked, channel: Channel) -> None:
        number = asked.number
        self._builds.ask(
            asked.request,
            on_progress=lambda progress: _tell(channel, BuildProgressed(number=number, progress=progress)),
            on_result=lambda result: _tell(channel, BuildEnded(number=number, result=result)),
        )

    def _change(self, asked: ChangeAsked, channel: Channel) -> None:
        number = asked.number

        def tell(error: BaseException | None) -> None:
            if error is None:
                ended = ChangeEnded(number=number)
            elif isinstance(error, ServePruneError):
                ended = ChangeEnded(number=number, code=error.code, message=error.message)
            else:
                ended = ChangeEnded(number=number, code=Code.INTERNAL, message=_UNEXPECTED)
            _tell(channel, ended)

        try:
            change = self._loadable.load if asked.action == "load" else self._loadable.unload
            change(asked.name).add_done_callback(lambda future: tell(future.exception()))
        except ServePruneError as error:
            tell(error)

    def _operate(self, asked: OperatorAsked, channel: Channel) -> None:
        number = asked.number

        def tell(future: "Future[OperatorAnswer]") -> None:
            if future.cancelled():
                answered = OperatorAnswered(number=number, message="the server is shutting down")
            elif (error := future.exception()) is None:
                answered = OperatorAnswered(number=number, answer=future.result())
            else:
                _log.error("a call to the admin API failed: %s", error)
                answered = OperatorAnswered(number=number, message=_UNEXPECTED)
            _tell(channel, answered)

        try:
            self._ask_operators(asked.call).add_done_callback(tell)
        except ServePruneError as error:
            _tell(channel, OperatorAnswered(number=number, message=error.message))


def _tell(channel: Channel, message: BuildProgressed | BuildEnded | ChangeEnded | OperatorAnswered) -> None:
    channel.send(message)
