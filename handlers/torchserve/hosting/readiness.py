"""Whether the workers of a TorchServe have loaded their models, which its own `/ping` does not say."""

import http.client
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from serveprune.config.server import Address
from serveprune.errors import FailedPrecondition, Unavailable
from serveprune.handlers.torchserve.hosting.java_process import KEY_FILE
from serveprune.handlers.torchserve.hosting.settings_files import CONSOLE_LOG, SERVER_LOG, WORKERS_LOG

_REQUEST_SECONDS = 10.0
_DEATHS_UNTIL_HOPELESS = 2
"""Of one worker, before it ever was ready: TorchServe starts it again and again, for minutes."""

_DEATH = re.compile(r"Retry worker: (?P<worker>\S+) in ")
_ERROR = re.compile(r"(?:^| )(?:[a-z_]+\.)*(?P<reason>[A-Z]\w+: \S.*)$", re.MULTILINE)
"""The last line of a Python trace, as logs have it."""
_UNREADABLE = re.compile(r"(?P<reason>Failed to load model: .*|Failed to bind to address.*|Invalid configuration.*)")


@dataclass(frozen=True, slots=True)
class Standing:
    """How the workers of one model stand."""

    ready: int
    wanted: int

    @property
    def is_ready(self) -> bool:
        """Whether all of them have loaded the model."""
        return self.ready >= self.wanted > 0


class Watch:
    """Asks a TorchServe how its workers are, and reads in its logs why they are not."""

    def __init__(self, management: Address, *, folder: Path, token_auth: bool) -> None:
        """Describe it; nothing is asked yet.

        Args:
            management: Where its management API listens.
            folder: Where it runs.
            token_auth: Whether it wants a token.
        """
        self._management = management
        self._folder = folder
        self._token_auth = token_auth

    def standing(self, model: str) -> Standing:
        """Return how a model stands.

        Raises:
            Unavailable: TorchServe does not answer, or does not know the model, yet.
        """
        versions = self._get(f"/models/{quote(model, safe='')}")
        if not isinstance(versions, list) or not versions:
            raise Unavailable(f"the management API does not describe {model}: {versions}")
        workers = versions[0].get("workers", [])
        ready = sum(worker.get("status") == "READY" for worker in workers)
        return Standing(ready=ready, wanted=int(versions[0].get("minWorkers", 1)))

    def expect_hope(self) -> None:
        """Return if all may still become ready.

        Raises:
            FailedPrecondition: A worker ends as often as it is started, or a model was refused; the message says why.
        """
        said = _text(self._folder / SERVER_LOG) + _text(self._folder / CONSOLE_LOG)
        refused = _UNREADABLE.search(said)
        if refused is not None:
            raise FailedPrecondition(f"TorchServe: {refused['reason']}")
        deaths = [match["worker"] for match in _DEATH.finditer(said)]
        worker = next((each for each in deaths if deaths.count(each) >= _DEATHS_UNTIL_HOPELESS), None)
        if worker is not None:
            raise FailedPrecondition(f"a worker ends whenever it is started: {self.last_error()}")

    def last_error(self) -> str:
        """Return the last error that a worker or TorchServe itself wrote down."""
        for log in (WORKERS_LOG, CONSOLE_LOG, SERVER_LOG):
            found = list(_ERROR.finditer(_text(self._folder / log)))
            if found:
                return found[-1]["reason"]
        return f"see {self._folder / 'logs'}"

    def _get(self, path: str) -> Any:
        headers = {"Authorization": f"Bearer {self._token()}"} if self._token_auth else {}
        connection = http.client.HTTPConnection(*self._management, timeout=_REQUEST_SECONDS)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != http.HTTPStatus.OK:
                raise Unavailable(f"the management API answers {answer.status}")
            return json.loads(body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unavailable(f"the management API does not answer: {error}") from None
        finally:
            connection.close()

    def _token(self) -> str:
        try:
            keys = json.loads((self._folder / KEY_FILE).read_text(encoding="utf-8"))
            return str(keys["management"]["key"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Unavailable(f"the management token is not there yet: {error}") from None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
