"""The child process behind `serveprune sensitivity`: ``python -m serveprune.compression.sensitivity.worker``.

Speaks the protocol of `serveprune.compression.worker` and lives inside the same limits. Its result line carries a
`SensitivityReport` as findings.
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from serveprune.compression.worker import run_worker

if TYPE_CHECKING:
    from serveprune.artifacts.builder import BuildProgress, BuildResult
    from serveprune.compression.job import BuildJob


def main() -> int:
    """Measure once and return the exit status, 0 whenever a result line was written."""
    return run_worker(_measure)


def _measure(job: "BuildJob", report: "Callable[[BuildProgress], None]") -> "BuildResult":
    # Numeric libraries read the limits on threads once, when they load.
    from serveprune.artifacts.builder import BuildOutcome, BuildResult
    from serveprune.artifacts.opening import open_store
    from serveprune.compression.sensitivity.sensitivity import Question, measure_sensitivity

    store = open_store(job.store)
    found = measure_sensitivity(
        job.request,
        Question(**job.settings),
        store=store,
        threads=job.builds.threads,
        threads_of_serving=job.threads_of_serving,
        on_progress=report,
    )
    return BuildResult(BuildOutcome.BUILT, findings=found.model_dump(mode="json", exclude={"least_loss"}))


if __name__ == "__main__":
    sys.exit(main())
