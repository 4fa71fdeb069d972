"""Virtual environments of the peers, one each, with every version pinned."""

import hashlib
import subprocess
import sys
from pathlib import Path

from serving_peers.peer import REQUIREMENTS, Peer

TORCH = "torch==2.13.0"
"""What pip is asked for. Where that would bring CUDA: `torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu`."""


def environment_python(peer: Peer, *, folder: Path, torch: str) -> Path:
    """Return the Python of a peer's environment, which is made if it is not there or not as pinned.

    Raises:
        SystemExit: Something cannot be installed.
    """
    requirements = REQUIREMENTS / f"{peer.name}.txt"
    if not requirements.exists():
        return Path(sys.executable)
    environment = folder.absolute() / peer.name
    python = environment / "bin/python"
    installed = environment / "installed"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if installed.exists() and installed.read_text() == wanted:
        return python
    print(f"installing {peer.name} into {environment}", file=sys.stderr, flush=True)
    _run([sys.executable, "-m", "venv", "--clear", str(environment)])
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if peer.needs_torch:
        # First and alone: a package that asks for it would choose another build.
        _run([*install, *torch.split()])
    # The file names all that is needed, and nothing may be added to it.
    _run([*install, "--no-deps", "--requirement", str(requirements)])
    installed.write_text(wanted)
    return python


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
