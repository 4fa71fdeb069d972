import numpy as np
import pytest
from unit.graph.executor.graphs import graph, numbers, positive

from serveprune.graph.executor.constants import Role, role_of


def _roles(text: str, **constants: np.ndarray) -> dict[str, Role]:
    return {name: role_of(value) for name, value in graph(text, **constants).graph.initializers.items()}


def test_weights_and_biases_are_learned_when_operators_learn_them() -> None:
    roles = _roles(
        """network (float[n, 4] x) => (float[n, 1] y) {
            hidden = MatMul(x, w)
            shifted = Add(hidden, bias)
            scaled = Mul(shifted, gain)
            y = Gemm(scaled, head, offset)
        }""",
        w=numbers(4, 3),
        bias=numbers(3),
        gain=numbers(1, 3),
        head=numbers(3, 1),
        offset=numbers(1),
    )
    assert roles == dict.fromkeys(("w", "bias", "gain", "head", "offset"), Role.WEIGHT)


@pytest.mark.parametrize(
    "constant",
    [
        np.array(8.0, np.float32),
        np.array([0.125], np.float32),
        np.triu(np.full((4, 4), -np.inf, np.float32), 1),
        np.array([0.0, -np.inf, 0.0, 0.0], np.float32),
        numbers(4, 4),
    ],
    ids=["number", "single", "mask", "infinite", "table"],
)
def test_numbers_masks_and_tables_are_buffers_when_added_or_multiplied(constant: np.ndarray) -> None:
    for operator in ("Add", "Mul"):
        text = f"network (float[n, 4, 4] x) => (float[n, 4, 4] y) {{ y = {operator}(x, c) }}"
        assert _roles(text, c=constant) == {"c": Role.BUFFER}


def test_frequencies_are_buffers_when_they_become_angles() -> None:
    roles = _roles(
        """network (float[1, n] position) => (float[2, n, 4] y) {
            one = Mul(position, frequencies)
            turned = Transpose <perm = [1, 0]> (other)
            two = MatMul(turned, position)
            back = Transpose <perm = [1, 0]> (two)
            both = Concat <axis = 1> (back, back)
            sine = Sin(both)
            cosine = Cos(one)
            y = Add(sine, cosine)
        }""",
        frequencies=numbers(4, 1),
        other=numbers(1, 4),
    )
    assert roles == {"frequencies": Role.BUFFER, "other": Role.BUFFER}


def test_settings_and_statistics_are_told_apart_when_operators_name_them() -> None:
    roles = _roles(
        """network (float[n, 4] x) => (float[m, 2] y) {
            limited = Clip(x, low, high)
            normed = BatchNormalization(limited, scale, bias, mean, variance)
            y = Reshape(normed, shape)
        }""",
        low=np.array(0, np.float32),
        high=np.array(6, np.float32),
        scale=numbers(4),
        bias=numbers(4),
        mean=numbers(4),
        variance=positive(4),
        shape=np.array([-1, 2]),
    )
    assert roles == {
        "low": Role.SETTING,
        "high": Role.SETTING,
        "scale": Role.WEIGHT,
        "bias": Role.WEIGHT,
        "mean": Role.STATISTIC,
        "variance": Role.STATISTIC,
        "shape": Role.SETTING,
    }


def test_weight_is_learned_when_it_is_brought_into_another_form_first() -> None:
    roles = _roles(
        """network (float[n, 4] x) => (float[n, 3] y) {
            wide = Cast <to = 1> (w)
            turned = Transpose <perm = [1, 0]> (wide)
            y = MatMul(x, turned)
        }""",
        w=numbers(3, 4, dtype=np.float16),
    )
    assert roles == {"w": Role.WEIGHT}
