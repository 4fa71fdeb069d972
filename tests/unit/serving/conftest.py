from collections.abc import Callable, Iterator

import pytest
from unit.serving.planes import Planes


@pytest.fixture
def make_planes() -> Iterator[Callable[..., Planes]]:
    made: list[Planes] = []

    def make(**options: float) -> Planes:
        made.append(Planes(**options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for planes in made:
        planes.stop()
