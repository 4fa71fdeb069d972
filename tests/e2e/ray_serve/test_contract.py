"""The contract table on Ray Serve: what our own server answers and refuses, it does. `server` is in conftest.py."""

from e2e.test_contract_cases import (
    test_case_is_answered_over_grpc,
    test_case_is_answered_over_http_in_binary,
    test_case_is_answered_over_http_in_json,
    test_case_is_refused_over_grpc,
    test_case_is_refused_over_http,
    test_elements_are_refused_over_grpc,
    test_elements_are_refused_over_http_in_json,
)

__all__ = [
    "test_case_is_answered_over_grpc",
    "test_case_is_answered_over_http_in_binary",
    "test_case_is_answered_over_http_in_json",
    "test_case_is_refused_over_grpc",
    "test_case_is_refused_over_http",
    "test_elements_are_refused_over_grpc",
    "test_elements_are_refused_over_http_in_json",
]
