"""From the tensors a client sent to the inputs of a graph, or to the reason why they do not fit."""

from collections.abc import Mapping, Sequence

from serveprune.errors import InvalidArgument
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import DYNAMIC, Array, Tensor, TensorSpec
from serveprune.preprocessing.protocol import Preprocessor


def needs_preprocessing(tensors: Sequence[Tensor], preprocessor: Preprocessor | None) -> bool:
    """Tell whether the client sent text or images rather than the graph's own inputs."""
    return preprocessor is not None and any(tensor.name == preprocessor.input.name for tensor in tensors)


def preprocess(tensors: Sequence[Tensor], preprocessor: Preprocessor, *, max_rows: int) -> list[Tensor]:
    """Replace the BYTES input by the graph inputs it stands for.

    Raises:
        InvalidArgument: Wrong datatype or shape, more than ``max_rows`` elements, one that cannot be read, or a
            graph input that is given both ways.
    """
    given = next(tensor for tensor in tensors if tensor.name == preprocessor.input.name)
    if given.datatype is not Datatype.BYTES:
        raise InvalidArgument(f"input {given.name}: expected datatype BYTES, got {given.datatype}")
    if given.array.ndim > 2 or (given.array.ndim == 2 and given.shape[1] != 1):
        raise InvalidArgument(f"input {given.name}: expected shape [N] or [N, 1], got {list(given.shape)}")
    _check_rows(given.array.size, max_rows)
    others = [tensor for tensor in tensors if tensor is not given]
    twice = sorted({tensor.name for tensor in others} & set(preprocessor.targets))
    if twice:
        raise InvalidArgument(f"input {given.name} already stands for {', '.join(twice)}; send one or the other")
    filled = preprocessor([bytes(value) for value in given.array.reshape(-1)])
    return [*others, *(Tensor.of(name, array) for name, array in filled.items())]


def graph_feeds(
    tensors: Sequence[Tensor], specs: Sequence[TensorSpec], *, max_rows: int, alternative: TensorSpec | None = None
) -> tuple[Mapping[str, Array], int]:
    """Return the graph's inputs by name and the number of rows.

    Args:
        tensors: What came, in any order.
        specs: What the graph takes.
        max_rows: Bound on the rows of one request.
        alternative: The BYTES input that may be sent instead, for the message.

    Raises:
        InvalidArgument: An input is missing, unknown, of the wrong datatype or shape, or has no row or too many.
    """
    given = {tensor.name: tensor for tensor in tensors}
    if len(given) != len(specs):
        raise _misnamed(given, specs, alternative)
    count: int | None = None
    for spec in specs:
        tensor = given.get(spec.name)
        if tensor is None:
            raise _misnamed(given, specs, alternative)
        _check(tensor, spec)
        if spec.shape and spec.shape[0] == DYNAMIC:
            rows = tensor.shape[0]
            if count is not None and rows != count:
                sizes = ", ".join(f"{name} {tensor.shape[0]}" for name, tensor in given.items() if tensor.shape)
                raise InvalidArgument(f"inputs disagree on the number of rows: {sizes}")
            count = rows
    count = 1 if count is None else count
    _check_rows(count, max_rows)
    return {name: tensor.array for name, tensor in given.items()}, count


def _misnamed(
    given: Mapping[str, Tensor], specs: Sequence[TensorSpec], alternative: TensorSpec | None
) -> InvalidArgument:
    """Say which input is unknown or missing."""
    wanted = ", ".join(spec.name for spec in specs) + (f" (or {alternative.name})" if alternative else "")
    unknown = sorted(given.keys() - {spec.name for spec in specs})
    if unknown:
        return InvalidArgument(f"unknown input {unknown[0]!r}; the model takes: {wanted}")
    missing = next(spec.name for spec in specs if spec.name not in given)
    return InvalidArgument(f"missing input {missing!r}; the model takes: {wanted}")


def _check_rows(rows: int, max_rows: int) -> None:
    if rows > max_rows:
        raise InvalidArgument(
            f"expected at most {max_rows} rows in one request (server.max_request_rows), got {rows}; send several"
        )


def _check(tensor: Tensor, spec: TensorSpec) -> None:
    if tensor.datatype is not spec.datatype:
        raise InvalidArgument(f"input {spec.name}: expected datatype {spec.datatype}, got {tensor.datatype}")
    if not spec.accepts(tensor.array.shape):
        raise InvalidArgument(
            f"input {spec.name}: expected shape {list(spec.shape)} (-1 is any size), got {list(tensor.shape)}"
        )
    if tensor.array.size == 0:
        raise InvalidArgument(f"input {spec.name}: expected at least one element, got shape {list(tensor.shape)}")
