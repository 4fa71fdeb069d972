from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError


def _whole_number(value: Any) -> Any:
    # Python counts true as 1, so `executors: true` would pass for one executor.
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "expected a whole number")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("float_type", "expected a number")
    return value


WholeNumber = Annotated[int, BeforeValidator(_whole_number)]
Number = Annotated[float, BeforeValidator(_number)]

# For optional fields: a bound on the whole of `X | None` is judged, but missing in the JSON Schema.
PositiveWholeNumber = Annotated[int, Field(ge=1), BeforeValidator(_whole_number)]
WholeNumberFromZero = Annotated[int, Field(ge=0), BeforeValidator(_whole_number)]
PositiveNumber = Annotated[float, Field(gt=0), BeforeValidator(_number)]
NumberAboveOne = Annotated[float, Field(gt=1), BeforeValidator(_number)]
PositiveShare = Annotated[float, Field(gt=0, le=1), BeforeValidator(_number)]
Fraction = Annotated[float, Field(gt=0, lt=1), BeforeValidator(_number)]
NumberFromZero = Annotated[float, Field(ge=0), BeforeValidator(_number)]
ShareFromZero = Annotated[float, Field(ge=0, lt=1), BeforeValidator(_number)]
Share = Annotated[float, Field(ge=0, le=1), BeforeValidator(_number)]
Percent = Annotated[int, Field(ge=0, le=100), BeforeValidator(_whole_number)]
Confidence = Annotated[float, Field(ge=0.5, lt=1), BeforeValidator(_number)]
BatchRows = Annotated[int, Field(ge=1, le=65_536), BeforeValidator(_whole_number)]
DelayMilliseconds = Annotated[float, Field(ge=0, le=60_000), BeforeValidator(_number)]
