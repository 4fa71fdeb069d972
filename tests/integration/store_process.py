"""Another process that uses a store: `python -m integration.store_process COMMAND STORE ...`.

It prints one line when it has got somewhere, and goes on when it reads one.
"""

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from unit.artifacts.artifact_factory import commit_dense, commit_tier, digest, tier_manifest, write_graph

from serveprune.artifacts.environment import environment
from serveprune.artifacts.key import artifact_key
from serveprune.artifacts.store import ArtifactStore
from serveprune.errors import ServePruneError

GRAPH = b"graph" * 1000


def _say(text: object) -> None:
    print(text, flush=True)


def _wait() -> None:
    sys.stdin.readline()


def lease(store: ArtifactStore, key: str) -> None:
    """Hold a lease until told to go on."""
    with store.lease(key):
        _say("leased")
        _wait()


def stage(store: ArtifactStore) -> None:
    """Be in the middle of writing an artifact until told to go on."""
    with store.staging() as folder:
        files = write_graph(folder, GRAPH)
        _say(folder)
        _wait()
        store.commit(folder, tier_manifest(files))


def build_once(store: ArtifactStore, log: str) -> None:
    """Find the tier or build it, as a builder does; notes each build in a file."""
    _say("ready")
    _wait()
    recipe = digest("tier")
    found = store.find_tier(recipe)
    if found is None:
        with store.single_flight(recipe):
            found = store.find_tier(recipe)
            if found is None:
                with Path(log).open("a", encoding="utf-8") as file:
                    file.write(f"{os.getpid()} begins\n")
                found = commit_tier(store, content=os.urandom(1_000_000))
                with Path(log).open("a", encoding="utf-8") as file:
                    file.write(f"{os.getpid()} ends\n")
    _say(found.manifest.files["model.onnx"].sha256)


def churn(store: ArtifactStore, rounds: str) -> None:
    """Find, build, lease and let go artifacts in a store too small for all of them; fails on a wrong byte."""
    for number in range(int(rounds)):
        name = f"tier {(number * 7 + os.getpid()) % 6}"
        content = name.encode() * 500
        with store.single_flight(name):
            if store.find_tier(digest(name)) is None:
                commit_tier(store, name, content=content)
        try:
            held = store.lease(artifact_key(digest(name), environment()))
        except ServePruneError:
            continue  # evicted by the other process since
        with held:
            found = store.open(held.key)
            if found is None or found.graph.read_bytes() != content:
                sys.exit(f"{name}: the leased artifact is {found}")
    _say("done")


def small_files(store: ArtifactStore, max_file_bytes: str) -> None:
    """Store under a limit on the size of files, which the kernel enforces; says how that ended."""
    limit = int(max_file_bytes)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        commit_tier(store, content=GRAPH)
        _say("stored")
    except ServePruneError as error:
        _say(f"{error.code}: {error.message}")


def unprivileged(store: ArtifactStore, sound: str, corrupt: str) -> None:
    """Use a store that this process cannot write to."""
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    with store.lease(sound):
        leased = store.is_leased(sound)
        _say(" ".join(["opened" if store.open(sound) else "missed", "leased" if leased else "free"]))
    _say("opened" if store.open(corrupt) else "corrupt")


def crash(store: ArtifactStore, action: str) -> None:
    """Do something to the store in a child that is killed one step later each time, until it gets through.

    Says after each how the child ended, and waits, so that whoever asked can look and put the store back.
    """
    for step in range(1, 10_000):
        child = os.fork()
        if child == 0:
            _die_at(step, below=str(store.root))
            _ACTIONS[action](store)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        _say(os.waitstatus_to_exitcode(status))
        _wait()
        if not os.WIFSIGNALED(status):
            return


_ACTIONS: dict[str, Callable[[ArtifactStore], object]] = {
    "commit": lambda store: commit_tier(store, content=GRAPH),
    "import": lambda store: commit_dense(store, content=GRAPH),
    "collect": lambda store: store.collect_garbage(),
    "verify": lambda store: store.verify(),
}


def _die_at(step: int, *, below: str) -> None:
    """Arrange for SIGKILL right before this process's n-th operation on the file system below a folder."""
    left = step

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        named = event.startswith(("open", "os.", "shutil.")) and any(str(one).startswith(below) for one in arguments)
        # These are given relative names or descriptors.
        if named or event in ("fcntl.flock", "os.remove", "os.rmdir"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def main() -> None:
    """Run the command the arguments name."""
    command, root, max_bytes, *arguments = sys.argv[1:]
    _COMMANDS[command](ArtifactStore(Path(root), max_bytes=int(max_bytes)), *arguments)


_COMMANDS: dict[str, Callable[..., None]] = {
    one.__name__: one for one in (lease, stage, build_once, churn, small_files, unprivileged, crash)
}

if __name__ == "__main__":
    main()
