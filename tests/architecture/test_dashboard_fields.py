"""Every field of the dashboard is one that Grafana's own classes have, where they say it is.

They are generated from Grafana's schemas. A field that they do not know is gone when they write what they have read.
"""

import json
from collections.abc import Iterator
from typing import Any

from e2e.monitoring import DASHBOARD
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

# The schemas leave to data sources what a variable's query and an annotation of theirs have besides.
OF_DATA_SOURCES = {"definition", "step", "textFormat", "titleFormat"}


def unknown_fields(written: dict[str, Any]) -> set[str]:
    register_default_plugins()
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(written)))
    return set(differences(written, read))


def differences(written: Any, read: Any, path: str = "") -> Iterator[str]:
    if isinstance(written, dict) and isinstance(read, dict):
        for name, value in written.items():
            yield from differences(value, read.get(name), f"{path}.{name}")
    elif isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        for index, (left, right) in enumerate(zip(written, read, strict=True)):
            yield from differences(left, right, f"{path}[{index}]")
    elif written != read:
        yield path


def test_dashboard_has_no_field_that_grafana_does_not_know() -> None:
    unknown = unknown_fields(json.loads(DASHBOARD.read_text()))
    assert {path for path in unknown if path.rpartition(".")[2] not in OF_DATA_SOURCES} == set()


def test_field_that_grafana_does_not_know_is_found_when_a_panel_has_one() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panel = next(index for index, panel in enumerate(dashboard["panels"]) if panel["type"] == "timeseries")
    dashboard["panels"][panel]["options"]["legend"]["placemnt"] = "right"
    assert f".panels[{panel}].options.legend.placemnt" in unknown_fields(dashboard)
