from collections.abc import Sequence

from serveprune.errors import FailedPrecondition
from serveprune.oip.tensor import DYNAMIC, TensorSpec


def rows_per_run(inputs: Sequence[TensorSpec], *, wanted: int) -> int:
    """Return how many rows of a data set go into one run of a graph: 1 where its batch axis is fixed at 1.

    Raises:
        FailedPrecondition: The batch axis is fixed above 1.
    """
    fixed = {spec.shape[0] for spec in inputs if spec.shape} - {DYNAMIC}
    if fixed - {1}:
        raise FailedPrecondition(
            f"expected a graph with a dynamic batch axis, got one fixed at {sorted(fixed)}; export it again"
        )
    return 1 if fixed else wanted
