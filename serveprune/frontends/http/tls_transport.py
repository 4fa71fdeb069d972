import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any

from serveprune.errors import InvalidArgument
from serveprune.frontends.certificates import ServerCertificate
from serveprune.frontends.http.reply import error_reply
from serveprune.frontends.watched_files import WatchedFiles

_HANDSHAKE_RECORD = 0x16
"""First byte of whatever begins TLS."""
_READ_BYTES = 2**18
_PIECE_BYTES = 2**18
"""Encrypted at a time; the rest waits until the socket has taken that."""
_EXTRA = ("sslcontext", "ssl_object", "cipher", "peercert")


class TlsListener:
    """Makes of each connection that is accepted an encrypted one, and hands it on after the handshake.

    uvloop can do that as well, but lets any number of handshakes wait, tells a client nothing when one fails, hides
    from those above it what waits to be sent below it, and waits for the client before it closes.

    Args:
        certificate: Each connection gets the one that is current when it begins.
        make: Makes the protocol above TLS, which is told of the connection only after the handshake.
        max_handshakes: Connections that may be at it at once; more are cut off.
        patience_seconds: For a handshake.
    """

    def __init__(
        self,
        certificate: WatchedFiles[ServerCertificate],
        make: Callable[..., Any],
        *,
        max_handshakes: int,
        patience_seconds: float,
    ) -> None:
        self.certificate = certificate
        self.max_handshakes = max_handshakes
        self.patience_seconds = patience_seconds
        self.handshakes: set[TlsTransport] = set()
        self._make = make

    def __call__(self, **options: Any) -> "TlsTransport":
        """Return the protocol of a connection that was just accepted, as uvicorn asks for one."""
        return TlsTransport(self, lambda: self._make(**options))

    def abort(self) -> None:
        """Cut off all handshakes, and those to come."""
        self.max_handshakes = 0
        for handshake in list(self.handshakes):
            handshake.abort()


class TlsTransport(asyncio.Protocol):
    """TLS on a connection: a protocol to the socket below it, a transport to the protocol above it.

    No state of TLS is made for a client before its first byte has come, and no protocol above before the handshake is
    over.
    """

    __slots__ = (
        "_above",
        "_above_paused",
        "_backlog",
        "_backlog_bytes",
        "_closing",
        "_encrypted",
        "_incoming",
        "_listener",
        "_make",
        "_outgoing",
        "_paused",
        "_socket",
        "_timer",
        "_tls",
    )

    def __init__(self, listener: TlsListener, make: Callable[[], Any]) -> None:
        self._listener = listener
        self._make = make
        self._above: Any = None
        self._socket: Any = None
        self._tls: ssl.SSLObject | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._timer: asyncio.TimerHandle | None = None
        self._backlog: deque[memoryview] = deque()
        self._backlog_bytes = 0
        self._paused = self._above_paused = self._closing = False

    # What the socket's transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a handshake, if there is room for one more."""
        listener = self._listener
        self._socket = transport
        if len(listener.handshakes) >= listener.max_handshakes:
            self._socket.abort()
            return
        listener.handshakes.add(self)
        self._timer = asyncio.get_running_loop().call_later(listener.patience_seconds, self.abort)

    def data_received(self, data: bytes) -> None:
        """Decrypt what came, and hand it on."""
        if self._closing:
            return
        if self._tls is None:
            if data[0] != _HANDSHAKE_RECORD:
                self._refuse_plain(data)
                return
            self._tls = self._listener.certificate.current.context.wrap_bio(
                self._incoming, self._outgoing, server_side=True
            )
        self._incoming.write(data)
        if self._above is None and not self._shake_hands(self._tls):
            return
        self._read(self._tls)

    def eof_received(self) -> None:
        """Tell the protocol above; the socket's transport closes itself then."""
        if self._above is not None and not self._closing:
            self._above.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the protocol above, if there is one."""
        self._end_handshake()
        self._closing = True
        self._backlog.clear()
        self._backlog_bytes = 0
        above, self._above = self._above, None
        if above is not None:
            above.connection_lost(exc)

    def pause_writing(self) -> None:
        """Encrypt nothing more until the socket has taken what it has."""
        self._paused = True
        if self._above is not None and not self._above_paused:
            self._above_paused = True
            self._above.pause_writing()

    def resume_writing(self) -> None:
        """Go on."""
        self._paused = False
        self._encrypt_backlog()
        if not self._paused and self._above_paused and self._above is not None:
            self._above_paused = False
            self._above.resume_writing()

    # What the protocol above calls.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send."""
        if self._closing or not data:
            return
        if not self._backlog and not self._paused and len(data) <= _PIECE_BYTES:
            self._send(data)
            return
        self._backlog.append(memoryview(data).cast("B"))
        self._backlog_bytes += len(self._backlog[-1])
        self._encrypt_backlog()

    def close(self) -> None:
        """Send what waits, then say that it was all, and close."""
        if self._closing:
            return
        self._closing = True
        if self._backlog:
            self._socket.pause_reading()
        else:
            self._finish()

    def abort(self) -> None:
        """Close at once."""
        self._closing = True
        if self._socket is not None:
            self._socket.abort()

    def is_closing(self) -> bool:
        """Tell whether nothing more is sent or received."""
        return self._closing or self._socket.is_closing()

    def get_write_buffer_size(self) -> int:
        """Return the bytes that wait to be sent, encrypted or not."""
        return self._backlog_bytes + int(self._socket.get_write_buffer_size())

    def pause_reading(self) -> None:
        """Read no more."""
        self._socket.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._socket.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what is known of the connection."""
        if self._tls is None or name not in _EXTRA:
            return self._socket.get_extra_info(name, default)
        match name:
            case "sslcontext":
                return self._tls.context
            case "ssl_object":
                return self._tls
            case "cipher":
                return self._tls.cipher()
            case _:
                return self._tls.getpeercert()

    # Between the two.

    def _refuse_plain(self, data: bytes) -> None:
        """Tell a client that does not speak TLS so, if it can be told in HTTP."""
        self._end_handshake()
        if data[:1].isalpha():
            reply = error_reply(InvalidArgument("expected TLS, got plain HTTP; use an https:// URL"))
            self._socket.write(b"".join((reply.head((), closes=True), *reply.parts)))
        self._closing = True
        self._socket.close()

    def _shake_hands(self, tls: ssl.SSLObject) -> bool:
        """Go on with the handshake, and return whether it is over."""
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except (ssl.SSLError, OSError):
            self._give_up()
            return False
        self._flush()
        self._end_handshake()
        above = self._above = self._make()
        above.connection_made(self)
        return True

    def _read(self, tls: ssl.SSLObject) -> None:
        pieces = []
        ended = False
        try:
            # What must be asked in vain costs an exception.
            while self._incoming.pending or tls.pending():
                piece = tls.read(_READ_BYTES)
                if not piece:
                    ended = True
                    break
                pieces.append(piece)
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLError, OSError):
            self._give_up()
            return
        # Answers to what TLS itself asks.
        self._flush()
        if pieces:
            self._above.data_received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if ended and not self._closing:
            self._above.eof_received()
            self.close()

    def _send(self, data: bytes | bytearray | memoryview) -> None:
        assert self._tls is not None
        try:
            sent = self._tls.write(data)
            while sent < len(data):
                sent += self._tls.write(memoryview(data)[sent:])
        except (ssl.SSLError, OSError):
            self.abort()
            return
        self._socket.write(self._outgoing.read())

    def _encrypt_backlog(self) -> None:
        while self._backlog and not self._paused and not self._socket.is_closing():
            waiting = self._backlog.popleft()
            piece, rest = waiting[:_PIECE_BYTES], waiting[_PIECE_BYTES:]
            if rest:
                self._backlog.appendleft(rest)
            self._backlog_bytes -= len(piece)
            self._send(piece)
        if self._closing and not self._backlog:
            self._finish()

    def _finish(self) -> None:
        """Say that nothing follows; without that a client could not tell the end from a connection that was cut."""
        if self._tls is not None and self._above is not None:
            # It would rather wait for the client to say so, too.
            with contextlib.suppress(ssl.SSLError, OSError):
                self._tls.unwrap()
            self._flush()
        self._socket.close()

    def _give_up(self) -> None:
        """Tell the client what TLS has against it, and close."""
        self._flush()
        self._closing = True
        self._socket.close()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._socket.write(self._outgoing.read())

    def _end_handshake(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._listener.handshakes.discard(self)
