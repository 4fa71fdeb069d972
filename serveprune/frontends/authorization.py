"""Which callers may ask: those that show a token. Knows no protocol."""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from serveprune.config.security import TokensConfig
from serveprune.errors import FailedPrecondition, ServePruneError, Unauthenticated
from serveprune.frontends.watched_files import Contents, WatchedFiles, read_files

TOKENS = "tokens"
"""Name of the tokens in logs and metrics."""

_SETTING = "server.tokens"
_MIN_CHARACTERS = 16
_MAX_CHARACTERS = 4096
_MAX_TOKENS = 1024
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_SCHEME = re.compile(rb"bearer +(?P<token>[A-Za-z0-9._~+/-]+=*) *", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TokenSet:
    """The tokens that count at a time, of which only the digests are kept."""

    _digests: tuple[bytes, ...] = field(repr=False)

    def __contains__(self, token: bytes) -> bool:
        # Digests are of one length, and all of them are compared: the time tells neither length nor likeness.
        digest = hashlib.sha256(token).digest()
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found


class Authorization:
    """Judges what callers show. Thread-safe."""

    def __init__(self, tokens: WatchedFiles[TokenSet]) -> None:
        self._tokens = tokens

    @property
    def tokens(self) -> TokenSet:
        """Those that count now; another object after each change."""
        return self._tokens.current

    def refusal(self, shown: Sequence[bytes]) -> ServePruneError | None:
        """Return why a call is refused; ``None`` if it is not.

        Args:
            shown: The values of ``authorization`` in its headers or metadata.
        """
        if not shown:
            return Unauthenticated("expected a token of this server; send it as `authorization: Bearer TOKEN`")
        match = _SCHEME.fullmatch(shown[0]) if len(shown) == 1 else None
        if match is None or len(match["token"]) > _MAX_CHARACTERS:
            return Unauthenticated("authorization: expected one value, `Bearer TOKEN`, got something else")
        if match["token"] not in self.tokens:
            return Unauthenticated("authorization: the token is none of this server's; it may have been replaced")
        return None


def shown_in(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """Return what the headers of an HTTP request show; names are lower-case."""
    return [value for name, value in headers if name == b"authorization"]


def shown_in_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> list[bytes]:
    """Return what the metadata of a gRPC call shows; names are lower-case."""
    return [
        value.encode("utf-8", "replace") if isinstance(value, str) else value
        for name, value in metadata
        if name == "authorization"
    ]


def watched_tokens(
    config: TokensConfig, *, environment: Mapping[str, str], setting: str = _SETTING, name: str = TOKENS
) -> WatchedFiles[TokenSet]:
    """Read the tokens that count, from wherever the config says.

    Args:
        config: Says where.
        environment: Holds the variable that it names.
        setting: Where the config stands, for messages.
        name: Of these tokens, in logs and metrics.

    Raises:
        FailedPrecondition: There are none, or something stands there that can be none.
    """
    said = _of_environment(config, environment, setting=setting)
    file_setting = f"{setting}.file"

    def token_set(contents: Contents) -> TokenSet:
        found = dict.fromkeys(said)
        for file, content in contents.items():
            found |= dict.fromkeys(parse_tokens(content, where=f"{file_setting}: {file}"))
        if len(found) > _MAX_TOKENS:
            raise FailedPrecondition(f"{setting}: expected at most {_MAX_TOKENS} tokens, got {len(found)}")
        return TokenSet(tuple(hashlib.sha256(token).digest() for token in found))

    files = {config.file: file_setting} if config.file is not None else {}
    return WatchedFiles(files, token_set, name=name)


def any_token(config: TokensConfig, *, environment: Mapping[str, str]) -> str:
    """Return one of the tokens that count.

    Raises:
        FailedPrecondition: As for `watched_tokens`.
    """
    found = _of_environment(config, environment, setting=_SETTING)
    if not found and config.file is not None:
        setting = f"{_SETTING}.file"
        (content,) = read_files({config.file: setting}).values()
        found = parse_tokens(content, where=f"{setting}: {config.file}")
    return found[0].decode("ascii")


def _of_environment(config: TokensConfig, environment: Mapping[str, str], *, setting: str) -> list[bytes]:
    if config.environment is None:
        return []
    # Not named in the message: what was written there may be a token itself.
    where = f"{setting}.environment"
    text = environment.get(config.environment)
    if text is None:
        raise FailedPrecondition(f"{where}: expected the name of a variable that is set, got one that is not; set it")
    return parse_tokens(text.encode("utf-8", "surrogateescape"), where=where)


def parse_tokens(content: bytes, *, where: str) -> list[bytes]:
    """Return the tokens of a text, one a line; what follows a ``#`` is a comment.

    Args:
        content: The text.
        where: Stands before the message; no message quotes the text.

    Raises:
        FailedPrecondition: There is none, or something stands there that can be none.
    """
    tokens = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        token = line.partition(b"#")[0].strip().decode("latin-1")
        if not token:
            continue
        if not _TOKEN.fullmatch(token):
            raise FailedPrecondition(
                f"{where}: line {number}: expected one token of letters, digits and - . _ ~ + / (and = at its end), "
                "got other characters"
            )
        if not _MIN_CHARACTERS <= len(token) <= _MAX_CHARACTERS:
            raise FailedPrecondition(
                f"{where}: line {number}: expected a token of {_MIN_CHARACTERS} to {_MAX_CHARACTERS} characters, got "
                f"{len(token)}; `openssl rand -hex 32` makes one"
            )
        tokens.append(token.encode("ascii"))
    if not tokens:
        raise FailedPrecondition(f"{where}: expected at least one token, got none; `openssl rand -hex 32` makes one")
    return tokens
