"""What has to be installed for TorchServe itself; none of it is imported here."""

import os
import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from serveprune.errors import FailedPrecondition, MissingExtra


def require_package(name: str) -> Path:
    """Return the folder that a distribution is installed in.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        return Path(str(distribution(name).locate_file("")))
    except PackageNotFoundError:
        raise MissingExtra(f'{name} is not installed: pip install "serveprune[torchserve]"') from None


def java() -> str:
    """Return the path of the Java that TorchServe runs with.

    Raises:
        FailedPrecondition: There is none.
    """
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=str(Path(home, "bin")) if home else None)
    if found is None:
        place = f"in JAVA_HOME ({home})" if home else "on the PATH"
        raise FailedPrecondition(
            f"TorchServe runs on Java 17; expected `java` {place}, got none: apt-get install openjdk-17-jre-headless"
        )
    return found
