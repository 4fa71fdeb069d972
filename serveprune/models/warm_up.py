"""What a graph shows when it is run on made-up inputs: whether rows are apart, how they are padded, what they take."""

import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from serveprune.backends.protocol import Session
from serveprune.errors import InvalidArgument, ServePruneError
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import DYNAMIC, Array, TensorSpec
from serveprune.scheduling.job import row_length
from serveprune.scheduling.latency_table import LatencyTable
from serveprune.scheduling.padding import Padding, stack

_LENGTH = 8
_SHORTER = 5
_ROW_TOLERANCE = 1e-3
_MASKS = ("attention_mask", "input_mask", "padding_mask")
"""What exporters call the input that says which elements of a sequence count: 1 does, 0 does not."""

_TIMED_LENGTHS = (8, 32, 128, 512)
_LEAST_REPEATS, _MOST_REPEATS = 2, 10
_ENOUGH_SECONDS = 0.005


def example(specs: Sequence[TensorSpec], rows: Sequence[int], *, length: int = _LENGTH) -> dict[str, Array]:
    """Make inputs of which each row depends on its number alone, and differs from all others.

    Args:
        specs: What the graph takes.
        rows: Their numbers.
        length: Of all dynamic axes but the first.

    Raises:
        InvalidArgument: An input takes strings.
    """
    feeds: dict[str, Array] = {}
    for spec in specs:
        if spec.datatype is Datatype.BYTES:
            raise InvalidArgument(f"input {spec.name} takes strings, for which no example can be made up")
        sizes = [length if size == DYNAMIC else size for size in spec.shape]
        if spec.shape and spec.shape[0] == DYNAMIC:
            values = np.stack([_example_row(sizes[1:], row, spec.datatype) for row in rows])
        else:
            values = _example_row(sizes, 0, spec.datatype)
        feeds[spec.name] = values.astype(spec.datatype.dtype)
    return feeds


def _example_row(sizes: Sequence[int], row: int, datatype: Datatype) -> Array:
    random = np.random.default_rng(row)
    if datatype.dtype.kind == "f":
        return random.uniform(-1.0, 1.0, sizes)
    # Zeros and ones are valid token ids, mask entries and flags alike.
    values = np.ones(sizes, dtype=np.int64) if row == 0 else random.integers(0, 2, sizes)
    if row and values.size:
        # A one, for a mask of zeros alone makes many a graph divide by zero; and a zero, unlike in row 0.
        values.flat[0], values.flat[-1] = 1, 0
    return values


def rows_are_apart(session: Session) -> bool:
    """Run two rows, apart and together, and tell whether each gets the same answer both ways.

    Raises:
        ServePruneError: The graph refuses made-up inputs.
    """
    first, second, both = (session.run(example(session.inputs, rows)) for rows in ((0,), (1,), (0, 1)))
    return all(map(_are_apart, first, second, both))


def fixed_length(specs: Sequence[TensorSpec]) -> int | None:
    """Return the elements of the largest input's row where the graph fixes the size of every row, else ``None``."""
    rows = [spec.shape[1:] for spec in specs]
    if any(DYNAMIC in sizes for sizes in rows):
        return None
    return max(map(math.prod, rows), default=1)


def has_dynamic_rows(session: Session) -> bool:
    """Tell whether every input and output leaves the number of rows to each request."""
    return all(spec.shape and spec.shape[0] == DYNAMIC for spec in (*session.inputs, *session.outputs))


def find_padding(session: Session) -> Padding | None:
    """Tell how rows of different length can share a run without changing each other's answers.

    Only where an input is called a mask, and only if two rows of different length were seen to get the same answers
    padded together as each did alone.
    """
    masks = [spec for spec in session.inputs if spec.name in _MASKS and len(spec.shape) == 2]
    sequences = [spec.name for spec in session.inputs if len(spec.shape) > 1 and spec.shape[1] == DYNAMIC]
    if not masks or masks[0].name not in sequences:
        return None
    try:
        return _seen_padding(session, dict.fromkeys(sequences, 0))
    except ServePruneError:
        # A graph may want its inputs to be of one length, or a multiple of something.
        return None


def _seen_padding(session: Session, values: Mapping[str, int]) -> Padding | None:
    shorter = _unmasked(example(session.inputs, (1,), length=_SHORTER))
    longer = _unmasked(example(session.inputs, (2,), length=_LENGTH))
    alone = session.run(shorter), session.run(longer)
    both = session.run(
        {name: stack([shorter[name], longer[name]], length=_LENGTH if name in values else None) for name in shorter}
    )
    as_long = set()
    for spec, short, long, together in zip(session.outputs, *alone, both, strict=True):
        grows = len(spec.shape) > 1 and short.shape[1:2] == (_SHORTER,) and long.shape[1:2] == (_LENGTH,)
        if grows:
            as_long.add(spec.name)
        parts = (together[:1, :_SHORTER] if grows else together[:1]), together[1:]
        if not all(map(_agree, (short, long), parts)):
            return None
    return Padding(values, frozenset(as_long))


def _unmasked(feeds: dict[str, Array]) -> dict[str, Array]:
    """Let every element of made-up sequences count, so that only what is added does not."""
    return {name: np.ones_like(array) if name in _MASKS else array for name, array in feeds.items()}


def time_batches(
    session: Session,
    *,
    padding: Padding | None,
    max_rows: int,
    max_elements: int | None,
    budget_seconds: float,
) -> LatencyTable:
    """Time batches of several sizes, the small ones first, until the budget is spent.

    Args:
        session: Has run before.
        padding: Where rows have a length, several are timed.
        max_rows: The largest batch there will be.
        max_elements: Bound on rows times length.
        budget_seconds: No further size is begun after so long.
    """
    # Others may be computing beside this; a run's own processor time is what it takes when they are not.
    clock = time.thread_time if session.computes_in_caller else time.perf_counter
    rows = [2**power for power in range(max_rows.bit_length()) if 2**power < max_rows] + [max_rows]
    lengths = _TIMED_LENGTHS if padding is not None else (_LENGTH,)
    sizes = sorted(((each, length) for each in rows for length in lengths), key=lambda size: size[0] * size[1])
    measured: dict[tuple[int, int], float] = {}
    start = time.perf_counter()
    for count, length in sizes:
        if measured and time.perf_counter() - start >= budget_seconds:
            break
        if max_elements is not None and count * length > max_elements and count > 1:
            continue
        feeds = example(session.inputs, range(count), length=length)
        try:
            measured[count, row_length(feeds, padding)] = _least_seconds(session, feeds, clock)
        except ServePruneError:
            # Longer than the graph's positions go.
            continue
    return LatencyTable(measured)


def _least_seconds(session: Session, feeds: Mapping[str, Array], clock: Callable[[], float]) -> float:
    """Return the least of several timings: what else the machine does only ever adds."""
    seconds: list[float] = []
    while len(seconds) < _LEAST_REPEATS or (len(seconds) < _MOST_REPEATS and sum(seconds) < _ENOUGH_SECONDS):
        start = clock()
        session.run(feeds)
        seconds.append(clock() - start)
    return min(seconds)


def _are_apart(first: Array, second: Array, both: Array) -> bool:
    """Tell whether two rows got the same answers together as each did alone."""
    if first.ndim == 0 or second.ndim == 0 or both.ndim == 0 or (len(first), len(second), len(both)) != (1, 1, 2):
        return False
    return _agree(np.concatenate([first, second]), both)


def _agree(alone: Array, together: Array) -> bool:
    if alone.shape != together.shape:
        return False
    if alone.dtype.kind != "f":
        return bool(np.array_equal(alone, together))
    scale = float(np.max(np.abs(alone), initial=0.0)) or 1.0
    return bool(np.max(np.abs(alone - together), initial=0.0) <= _ROW_TOLERANCE * scale)
