"""Send requests over HTTP at given moments, whatever becomes of the earlier ones, and note how each was answered."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

_LEAD_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of one request.

    Attributes:
        sent: Moment it was due, in seconds from the start.
        seconds: From that moment to the whole answer, so that a client that is behind counts against the server.
        status: HTTP status.
        tier: That served; empty where none did.
    """

    sent: float
    seconds: float
    status: int
    tier: str


async def drive(address: str, path: str, bodies: Sequence[bytes], moments: Sequence[float]) -> list[Answered]:
    """Send one request at each moment, bodies in rotation, over as many connections as it takes.

    Args:
        address: ``host:port``.
        path: To POST to.
        bodies: JSON.
        moments: Seconds from the start, ascending.
    """
    client = _Client(address)
    loop = asyncio.get_running_loop()
    start = loop.time() + _LEAD_SECONDS

    async def send(index: int, moment: float) -> Answered:
        status, tier = await client.post(path, bodies[index % len(bodies)])
        return Answered(moment, loop.time() - start - moment, status, tier)

    tasks = []
    for index, moment in enumerate(moments):
        await asyncio.sleep(max(0.0, start + moment - loop.time()))
        tasks.append(asyncio.create_task(send(index, moment)))
    answered = await asyncio.gather(*tasks)
    client.close()
    return answered


async def closed_loop(address: str, path: str, bodies: Sequence[bytes], *, clients: int, seconds: float) -> float:
    """Return how many requests a second are answered when so many clients wait for their answers."""
    client = _Client(address)
    start = time.perf_counter()
    counts = [0] * clients

    async def ask(which: int) -> None:
        while time.perf_counter() - start < seconds:
            status, _ = await client.post(path, bodies[(which + counts[which]) % len(bodies)])
            if status != 200:
                raise RuntimeError(f"{path} was answered with {status}")
            counts[which] += 1

    await asyncio.gather(*(ask(which) for which in range(clients)))
    rate = sum(counts) / (time.perf_counter() - start)
    client.close()
    return rate


class _Client:
    """Keeps connections for one request at a time each. For one event loop."""

    def __init__(self, address: str) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, path: str, body: bytes) -> tuple[int, str]:
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(self._host, self._port)
        writer.write(
            b"POST %s HTTP/1.1\r\nHost: benchmark\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            % (path.encode(), len(body))
        )
        writer.write(body)
        head = await reader.readuntil(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        content = await reader.readexactly(int(headers["content-length"]))
        self._idle.append((reader, writer))
        if status.split()[1] != "200":
            return int(status.split()[1]), ""
        # An answer that is no JSON is no answer.
        json.loads(content)
        return 200, headers["x-compression-tier"]

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
