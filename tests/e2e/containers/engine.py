"""podman and buildah, with a storage of their own that is thrown away, and what images are built from here."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).resolve().parents[3]
CACHE = ROOT / ".containers"
"""Kept between runs: a base system, and wheels."""

BASE = "docker.io/library/python:3.11-slim-bookworm"
IMAGE_PYTHON = (3, 11)
TOOLS = ("podman", "buildah", "runc", "conmon", "slirp4netns", "debootstrap")

_SUITE = "bookworm"
_MIRROR = "http://deb.debian.org/debian"
_PACKAGES = "ca-certificates,python3,python3-venv,python3-pip"
_CONTAINERS_CONF = """\
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=8192:8192"]
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
"""
_STORAGE_CONF = """\
[storage]
driver = "overlay"
graphroot = "{folder}/graph"
runroot = "{folder}/run"
"""
_EXTRAS = re.compile(r'^ARG EXTRAS="(.*)"$', re.MULTILINE)
_PIP_CONF = "[global]\nno-index = true\nfind-links = /packages\n"
_NOT_OF_A_SLIM_IMAGE = ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists")


def missing() -> str | None:
    """Say why no image can be built here, if so."""
    if os.geteuid() != 0:
        return "containers are built and run here by root only"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    if sys.version_info[:2] != IMAGE_PYTHON:
        return "the image's Python is 3.11, and its wheels are fetched by the same one"
    return None


class Engine:
    """Runs podman and buildah; `close` leaves neither containers nor images."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "networks").mkdir(parents=True)
        for name, text in (("containers.conf", _CONTAINERS_CONF), ("storage.conf", _STORAGE_CONF)):
            (folder / name).write_text(text.format(folder=folder), encoding="utf-8")
        (folder / "pip.conf").write_text(_PIP_CONF, encoding="utf-8")
        self.environment = {
            **os.environ,
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        }

    def tried(
        self, *words: object, timeout: float = 240, environment: Mapping[str, str] = MappingProxyType({})
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command, however it ends."""
        command = list(map(str, words))
        whole = {**self.environment, **environment}
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=whole)

    def run(self, *words: object, timeout: float = 240, environment: Mapping[str, str] = MappingProxyType({})) -> str:
        """Run a command that must succeed, and return what it prints."""
        finished = self.tried(*words, timeout=timeout, environment=environment)
        said = finished.stdout[-4000:] + finished.stderr[-4000:]
        assert finished.returncode == 0, f"{' '.join(map(str, words))}\n{said}"
        return finished.stdout.strip()

    def build(
        self, tag: str, *, context: Path, target: str | None = None, arguments: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Build an image from a folder, with packages from the folder of wheels only."""
        self.run(
            # Layers: what two targets have in common is made once.
            *("buildah", "bud", "--quiet", "--layers", "--isolation", "chroot", "--pull-never", "--format", "docker"),
            *("--secret", f"id=pip,src={self._folder / 'pip.conf'}", "--volume", f"{CACHE / 'wheels'}:/packages:ro"),
            *(word for pair in arguments.items() for word in ("--build-arg", "=".join(pair))),
            *(("--target", target) if target is not None else ()),
            *("--tag", tag, context),
            timeout=900,
        )

    def close(self) -> None:
        """Remove everything."""
        self.tried("podman", "rm", "--all", "--force", "--time", "5")
        self.tried("podman", "volume", "rm", "--all", "--force")
        self.tried("podman", "network", "prune", "--force")
        self.tried("buildah", "rm", "--all")
        self.tried("podman", "rmi", "--all", "--force")
        self.tried("umount", self._folder / "graph" / "overlay")
        shutil.rmtree(self._folder, ignore_errors=True)


def base_system() -> Path:
    """Return a small Debian with Python, as an archive, from the machine's own source of packages."""
    archive, unpacked = CACHE / f"{_SUITE}.tar", CACHE / f"{_SUITE}.partial"
    if archive.exists():
        return archive
    CACHE.mkdir(exist_ok=True)
    shutil.rmtree(unpacked, ignore_errors=True)
    command = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _SUITE, str(unpacked), _mirror()]
    made = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert made.returncode == 0, made.stdout[-4000:] + made.stderr[-4000:]
    for name in _NOT_OF_A_SLIM_IMAGE:
        shutil.rmtree(unpacked / name)
    # What it has of this machine's network is not the image's.
    (unpacked / "etc" / "resolv.conf").write_text("", encoding="utf-8")
    partial = archive.with_suffix(".tar.partial")
    subprocess.run(["tar", "--directory", unpacked, "--create", "--file", partial, "."], check=True, timeout=120)
    shutil.rmtree(unpacked)
    return partial.rename(archive)


def fetch_wheels() -> None:
    """Have the packages of both images in a folder, of the pinned versions, as this machine gets packages anyway."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    constraints = ROOT / "deploy" / "constraints.txt"
    (extras,) = _EXTRAS.findall((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    optional = [line for extra in ("compress", *extras.split(",")) for line in project["optional-dependencies"][extra]]
    wanted = [*project["dependencies"], *optional, "hatchling"]
    digest = hashlib.sha256(constraints.read_bytes() + "\n".join(wanted).encode()).hexdigest()
    wheels, seal = CACHE / "wheels", CACHE / "wheels.sha256"
    if wheels.exists() and seal.exists() and seal.read_text(encoding="utf-8") == digest:
        return
    shutil.rmtree(wheels, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:", "--dest", str(wheels)]
    fetched = subprocess.run(
        [*command, "--constraint", str(constraints), *wanted], capture_output=True, text=True, timeout=600
    )
    assert fetched.returncode == 0, fetched.stderr[-4000:]
    seal.write_text(digest, encoding="utf-8")


def _mirror() -> str:
    """Return where this machine has Debian's main archive from."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", f"Codename: {_SUITE}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = [line.rstrip("/") for line in listed.stdout.splitlines() if line.rstrip("/").endswith("/debian")]
    return found[0] if found else _MIRROR
