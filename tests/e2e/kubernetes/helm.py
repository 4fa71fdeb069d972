"""Helm's library, in a process of its own: Go's runtime ends one that is as full as that of the tests."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


class Refused(Exception):
    """What Helm says of values or charts that it does not take."""


def run(function: Callable[_Given, _Result], *given: _Given.args, **named: _Given.kwargs) -> _Result:
    """Call a function of this module over there.

    Raises:
        Refused: Helm refuses what it is given.
    """
    return _process().submit(function, *given, **named).result(timeout=120)


def render(chart: Path, values: dict[str, Any], name: str, namespace: str) -> dict[str, str]:
    """Return what each template becomes."""
    from helm_python import Chart
    from helm_python.errors import HelmError

    with Chart.load(chart) as loaded:
        try:
            return loaded.render(values=values, name=name, namespace=namespace)
        except HelmError as error:
            raise Refused(str(error)) from None


def lint(chart: Path, values: dict[str, Any], namespace: str, kube_version: str) -> dict[str, Any]:
    """Return the linter's report."""
    from helm_python.chart import lint as linted

    return linted(chart, values, strict=True, namespace=namespace, kube_version=kube_version)


def description(chart: Path) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any]]:
    """Return a chart's default values, their schema, and what Chart.yaml says."""
    from helm_python import Chart

    with Chart.load(chart) as loaded:
        return loaded.values, loaded.schema, loaded.metadata


@cache
def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"))
