from collections.abc import Iterator

import pytest

from contract.http.served import Served, serve


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve() as running:
        yield running
