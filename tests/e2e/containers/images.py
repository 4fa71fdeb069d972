"""Both images, built as in docs/container.md, and their sizes: ``python -m e2e.containers.images`` prints them."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from e2e.containers.engine import BASE, ROOT, Engine, base_system, fetch_wheels

SERVE = "docker.io/library/serveprune:serve"
FULL = "docker.io/library/serveprune:full"

# A folder of wheels has one torch only.
_ARGUMENTS = {"TORCH": "torch==2.13.0"}


def build_images(engine: Engine) -> None:
    """Build both from this checkout; what the first one has on top of the second is not made for that one."""
    for tag in (SERVE, FULL):
        engine.build(tag, context=ROOT, target=tag.rpartition(":")[2], arguments=_ARGUMENTS)


def sizes_bytes(engine: Engine) -> Mapping[str, int]:
    """Return what the images take, and the base they share."""
    return {
        tag.rpartition("/")[2]: int(engine.run("podman", "image", "inspect", "--format", "{{.Size}}", tag))
        for tag in (BASE, SERVE, FULL)
    }


def main() -> None:
    """Build them and print a table."""
    fetch_wheels()
    archive = base_system()
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(Path(folder) / "storage")
        try:
            engine.run("podman", "import", archive, BASE, timeout=300)
            build_images(engine)
            for name, size in sizes_bytes(engine).items():
                print(f"{name:32} {size / 1e6:8.0f} MB")
        finally:
            engine.close()


if __name__ == "__main__":
    main()
