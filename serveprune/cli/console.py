"""Progress of builds on a terminal or in a log, and the streams it goes to."""

import threading
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from serveprune.artifacts.builder import BuildProgress

_PLAIN_STEP = 0.25


def progress_console() -> Console:
    """Return a console on standard error, so that standard output holds nothing but results."""
    return Console(stderr=True, highlight=False)


class ProgressDisplay(Protocol):
    """Shows how far builds are while it is entered. Thread-safe."""

    def __enter__(self) -> Self:
        """Start showing."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop showing and leave the terminal as it was."""
        ...

    def update(self, name: str, progress: BuildProgress) -> None:
        """Show where the build of this name is; the first call makes it appear."""
        ...

    def finish(self, name: str, text: str) -> None:
        """Show that the build of this name has ended, and how."""
        ...


def progress_display(console: Console) -> ProgressDisplay:
    """Return bars on a terminal, plain lines elsewhere."""
    return ProgressBars(console) if console.is_terminal else ProgressLines(console)


class ProgressBars:
    """One live bar per build."""

    def __init__(self, console: Console) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.fields[name]}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, name: str, progress: BuildProgress) -> None:
        """See `ProgressDisplay.update`."""
        text = f"{progress.stage} {progress.message}".strip()
        self._progress.update(self._task(name), completed=progress.fraction, description=text)

    def finish(self, name: str, text: str) -> None:
        """See `ProgressDisplay.finish`."""
        task = self._task(name)
        self._progress.update(task, completed=1.0, description=text)
        self._progress.stop_task(task)

    def _task(self, name: str) -> TaskID:
        with self._lock:
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task("", total=1.0, name=name)
            return self._tasks[name]


class ProgressLines:
    """One line whenever a build enters a stage, goes a quarter on, or ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._shown: dict[str, tuple[str, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def update(self, name: str, progress: BuildProgress) -> None:
        """See `ProgressDisplay.update`."""
        place = (progress.stage, int(progress.fraction / _PLAIN_STEP))
        with self._lock:
            if self._shown.get(name) == place:
                return
            self._shown[name] = place
            self._print(f"{name}: {progress.fraction:4.0%} {progress.stage} {progress.message}".rstrip())

    def finish(self, name: str, text: str) -> None:
        """See `ProgressDisplay.finish`."""
        with self._lock:
            self._print(f"{name}: {text}")

    def _print(self, text: str) -> None:
        # A log line is one line, whatever the width of a terminal that is not there.
        self._console.print(text, markup=False, soft_wrap=True)
