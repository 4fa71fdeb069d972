"""The child process that plans a pruning and cuts nothing: ``python -m serveprune.compression.planner [JOB.json]``.

Speaks the protocol of `serveprune.compression.worker` and lives inside the same limits, so that planning cannot take
a serving machine down either. Its result line carries a `PlanReport` as findings.
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from serveprune.compression.worker import run_worker

if TYPE_CHECKING:
    from serveprune.artifacts.builder import BuildProgress, BuildResult
    from serveprune.compression.job import BuildJob


def main() -> int:
    """Plan once and return the exit status, 0 whenever a result line was written."""
    return run_worker(_plan)


def _plan(job: "BuildJob", report: "Callable[[BuildProgress], None]") -> "BuildResult":
    # Numeric libraries read the limits on threads once, when they load.
    from serveprune.artifacts.builder import BuildOutcome, BuildResult
    from serveprune.artifacts.opening import open_store
    from serveprune.compression.planning import plan_tier

    store = open_store(job.store)
    threads, serving = job.builds.threads, job.threads_of_serving
    plan = plan_tier(job.request, store=store, threads=threads, threads_of_serving=serving, on_progress=report)
    return BuildResult(BuildOutcome.BUILT, findings=plan.model_dump(mode="json"))


if __name__ == "__main__":
    sys.exit(main())
