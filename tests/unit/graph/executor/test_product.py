import numpy as np
import pytest
from unit.graph.executor.parity import Case, assert_gradients, assert_parity

_RANDOM = np.random.default_rng(0)


def _numbers(*shape: int) -> np.ndarray:
    return _RANDOM.standard_normal(shape).astype(np.float32)


_MATRIX_PRODUCTS = [
    *(
        Case("MatMul", [_numbers(*left), _numbers(*right)], name=f"{left}x{right}")
        for left, right in [
            ((3, 4), (4, 5)),
            ((2, 3, 4), (4, 5)),
            ((2, 1, 3, 4), (7, 4, 5)),
            ((4,), (4, 5)),
            ((2, 3, 4), (4,)),
            ((4,), (4,)),
        ]
    ),
    Case("MatMul", [_RANDOM.integers(-3, 3, (2, 3)), _RANDOM.integers(-3, 3, (3, 2))], name="integers"),
    Case("com.microsoft::FusedMatMul", [_numbers(2, 3, 4), _numbers(2, 4, 5)], {"alpha": 0.5}),
    Case("com.microsoft::FusedMatMul", [_numbers(2, 4, 3), _numbers(2, 5, 4)], {"transA": 1, "transB": 1}),
    Case("com.microsoft::FusedMatMul", [_numbers(3, 2, 4), _numbers(2, 4, 5)], {"transBatchA": 1}),
    Case(
        "com.microsoft::FusedMatMul",
        [_numbers(4, 2, 3), _numbers(4, 2, 5)],
        {"transBatchA": 1, "transA": 1, "transBatchB": 1},
    ),
]
_GEMMS = [
    *(
        Case("Gemm", [_numbers(*left), _numbers(*right), _numbers(5)], {"transA": turned[0], "transB": turned[1]})
        for left, right, turned in [
            ((3, 4), (4, 5), (0, 0)),
            ((3, 4), (5, 4), (0, 1)),
            ((4, 3), (4, 5), (1, 0)),
            ((4, 3), (5, 4), (1, 1)),
        ]
    ),
    Case("Gemm", [_numbers(3, 4), _numbers(4, 5)], name="no-bias"),
    Case("Gemm", [_numbers(3, 4), _numbers(4, 5), _numbers(3, 1)], {"alpha": 0.5, "beta": 1.5}),
    Case("Gemm", [_numbers(3, 4), _numbers(4, 5), np.array(2, np.float32)], name="scalar"),
    Case("Gemm", [_numbers(3, 4), _numbers(4, 5), _numbers(1)], name="single"),
    Case("Gemm", [_numbers(3, 4), _numbers(4, 5), _numbers(1, 5)], name="row"),
    Case("com.microsoft::FusedGemm", [_numbers(3, 4), _numbers(4, 5), _numbers(5)], {"activation": "Relu"}),
    Case(
        "com.microsoft::FusedGemm",
        [_numbers(3, 4), _numbers(4, 5), _numbers(5)],
        {"activation": "LeakyRelu", "activation_alpha": 0.3},
    ),
]
_SUMS = [
    Case("Einsum", [_numbers(2, 3, 4), _numbers(2, 4, 5)], {"equation": "bij, bjk -> bik"}),
    Case("Einsum", [_numbers(2, 3, 4)], {"equation": "bij->bji"}),
    Case("Einsum", [_numbers(2, 3, 3)], {"equation": "...ii->...i"}),
    Case("Einsum", [_numbers(3), _numbers(4)], {"equation": "i,j"}),
    Case("Det", [_numbers(2, 3, 3)]),
]


@pytest.mark.parametrize("case", [*_MATRIX_PRODUCTS, *_GEMMS, *_SUMS], ids=str)
def test_product_equals_onnx_runtime_when_computed_by_torch(case: Case) -> None:
    assert_parity(case)


@pytest.mark.parametrize(
    "case",
    [
        Case("Gemm", [_numbers(4, 3), _numbers(5, 4), _numbers(5)], {"transA": 1, "transB": 1, "alpha": 0.5}),
        Case("Gemm", [_numbers(3, 4), _numbers(5, 4), _numbers(5)], {"transB": 1}),
        Case("com.microsoft::FusedMatMul", [_numbers(3, 2, 4), _numbers(2, 4, 5)], {"transBatchA": 1, "alpha": 2.0}),
        Case("Einsum", [_numbers(2, 3, 4), _numbers(2, 4, 5)], {"equation": "bij,bjk->bik"}),
    ],
    ids=str,
)
def test_product_has_the_gradient_of_its_numbers_when_differentiated(case: Case) -> None:
    assert_gradients(case)
