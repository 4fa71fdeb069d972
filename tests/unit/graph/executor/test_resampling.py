import itertools

import numpy as np
import pytest
import torch
from unit.graph.executor.parity import Case, assert_parity, module

from serveprune.errors import InvalidArgument

_X = np.random.default_rng(0).standard_normal((1, 2, 5, 6)).astype(np.float32)
_COORDINATES = (
    *(
        "half_pixel",
        "half_pixel_symmetric",
        "pytorch_half_pixel",
        "align_corners",
        "asymmetric",
        "tf_half_pixel_for_nn",
    ),
)
_SIZES = ((7, 9), (10, 12), (3, 2), (1, 4))


def _scales(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def _sizes(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


_NEAREST = [
    Case(
        "Resize",
        [_X, None, None, _sizes(1, 2, *size)],
        {"mode": "nearest", "coordinate_transformation_mode": coordinates, "nearest_mode": nearest},
        name=f"nearest-{coordinates}-{nearest}-{size}",
    )
    for coordinates, nearest, size in itertools.product(
        _COORDINATES, ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"), _SIZES
    )
]
_SMOOTH = [
    Case(
        "Resize",
        [_X, None, None, _sizes(1, 2, *size)],
        {"mode": mode, "coordinate_transformation_mode": coordinates},
        name=f"{mode}-{coordinates}-{size}",
    )
    for mode, coordinates, size in itertools.product(("linear", "cubic"), _COORDINATES[:5], _SIZES)
]
_BY_SCALE = [
    Case(
        "Resize",
        [_X, None, _scales(1, 1, *scale)],
        {"mode": mode, "coordinate_transformation_mode": coordinates},
        name=f"{mode}-{coordinates}-{scale}",
    )
    for mode, coordinates, scale in itertools.product(
        ("nearest", "linear", "cubic"), ("half_pixel", "asymmetric"), ((2, 3), (0.6, 0.51), (1.3, 0.9))
    )
]
_REGION = _scales(0, 0, 0.4, 0.6, 1, 1, 1.3, 0.8)
_FORMS = [
    *(
        Case(
            "Resize",
            [_X, _REGION, None, _sizes(1, 2, 4, 5)],
            {"mode": mode, "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 7.0},
            name=f"region-{mode}",
        )
        for mode in ("nearest", "linear", "cubic")
    ),
    Case("Resize", [_X, None, _scales(1, 1, 0.8, 0.8)], {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5}),
    Case("Resize", [_X, None, None, _sizes(8, 9)], {"mode": "linear", "axes": [2, 3]}, name="axes"),
    *(
        Case(
            "Resize", [_X, None, None, _sizes(9, 8)], {"axes": [2, 3], "keep_aspect_ratio_policy": policy}, name=policy
        )
        for policy in ("not_larger", "not_smaller")
    ),
    Case("Resize", [_X[0], None, _scales(1, 2, 1.5)], {"mode": "linear"}, name="three-axes"),
    Case("Resize", [_X[0, 0], None, _scales(2, 0.5)], {"mode": "linear"}, name="two-axes"),
    Case("Resize", [_X[None], None, _scales(1, 1, 1, 2, 1.5)], {"mode": "linear"}, name="volume"),
    Case("Resize", [_X, _scales(1, 1, 2, 0.6)], {"mode": "nearest"}, opset=10),
    Case("Resize", [_X, _scales(1, 1, 2, 1.5)], {"mode": "linear"}, opset=10),
    Case("Upsample", [_X, _scales(1, 1, 2, 2)], {"mode": "nearest"}, constants=(1,), opset=9),
    Case("Upsample", [_X, _scales(1, 1, 2, 1.5)], {"mode": "linear"}, opset=9),
    Case("Upsample", [_X], {"mode": "nearest", "scales": [1.0, 1.0, 2.0, 3.0]}, opset=7),
]


@pytest.mark.parametrize("case", [*_NEAREST, *_SMOOTH, *_BY_SCALE, *_FORMS], ids=str)
def test_resampling_equals_onnx_runtime_when_computed_by_torch(case: Case) -> None:
    assert_parity(case)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "asymmetric", "align_corners"])
def test_resampling_has_the_gradient_of_its_numbers_when_differentiated(mode: str, coordinates: str) -> None:
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
    resize = module(Case("Resize", [_X, None, None, _sizes(1, 2, 4, 7)], attributes, constants=(3,)).model())
    data = torch.from_numpy(_X).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: resize({"x0": x})["y0"], (data,))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"antialias": 1, "mode": "linear"}, "expected Resize node without antialias"),
        ({"mode": "area"}, "expected one of nearest, linear, cubic in Resize node; got area"),
        ({"coordinate_transformation_mode": "other"}, "expected one of half_pixel, .* in Resize node; got other"),
    ],
)
def test_resampling_is_refused_when_no_kernel_computes_it(attributes: dict[str, object], message: str) -> None:
    model = Case("Resize", [_X, None, None, _sizes(1, 2, 4, 7)], attributes).model()
    with pytest.raises(InvalidArgument, match=message):
        module(model)
