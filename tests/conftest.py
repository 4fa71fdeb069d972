from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long it takes to make inputs, and to run examples, says how busy the machine is, and nothing else.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)  # before the groups are read
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together, where several processes share the work, the tests of a file and all that use the demo.

    What the tests of a file share is then made once, and so is the demo, whose build takes minutes.
    """
    for item in items:
        names = getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("demo" if "demo" in names else group_of(item.path)))


def group_of(file: Path) -> str:
    folder = file.parent
    # A folder beside those for all of e2e has a server of its own.
    return str((folder if folder.parent.name == "e2e" else file).relative_to(Path(__file__).parent))
