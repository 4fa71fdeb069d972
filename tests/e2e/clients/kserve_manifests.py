"""Holds manifests against the classes of the KServe SDK, and of the Kubernetes client for what they contain.

Arguments: YAML files. Unknown fields, missing ones, and values of another type are errors.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kserve.models
import kubernetes.client
import yaml

KINDS = {
    "ServingRuntime": (kserve.models, "V1alpha1ServingRuntime"),
    "ClusterServingRuntime": (kserve.models, "V1alpha1ClusterServingRuntime"),
    "InferenceService": (kserve.models, "V1beta1InferenceService"),
    "ConfigMap": (kubernetes.client, "V1ConfigMap"),
}
ITEM = re.compile(r"(?P<outer>list|dict)[\[(](str, )?(?P<inner>.+)[\])]", re.IGNORECASE)
SCALARS: Mapping[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "bool": (bool,), "float": (int, float)}


def problems(value: Any, kind: str, where: str) -> Iterator[str]:
    """Yield what is wrong with a value that should be of a kind, as the SDK writes kinds."""
    item = ITEM.fullmatch(kind)
    if item and item["outer"].lower() == "list":
        if not isinstance(value, list):
            yield f"{where}: expected a list, got {value!r}"
            return
        for index, each in enumerate(value):
            yield from problems(each, item["inner"], f"{where}[{index}]")
    elif item:
        if not isinstance(value, dict):
            yield f"{where}: expected a mapping, got {value!r}"
            return
        for key, each in value.items():
            yield from problems(each, item["inner"], f"{where}.{key}")
    elif kind in SCALARS:
        if not isinstance(value, SCALARS[kind]) or (kind != "bool" and isinstance(value, bool)):
            yield f"{where}: expected {kind}, got {value!r}"
    elif kind in ("ResourceQuantity", "object"):
        if isinstance(value, list | dict):
            yield f"{where}: expected a number or text, got {value!r}"
    else:
        yield from _problems_of_class(value, kind, where)


def _problems_of_class(value: Any, kind: str, where: str) -> Iterator[str]:
    found = getattr(kserve.models, kind, None) or getattr(kubernetes.client, kind)
    if not isinstance(value, dict):
        yield f"{where}: expected {kind}, got {value!r}"
        return
    attributes = {name: attribute for attribute, name in found.attribute_map.items()}
    for name in value.keys() - attributes.keys():
        yield f"{where}: {kind} has no field {name}"
    known = {attributes[name]: each for name, each in value.items() if name in attributes}
    try:
        found(**known)
    except ValueError as error:
        yield f"{where}: {error}"
    for attribute, each in known.items():
        yield from problems(each, found.openapi_types[attribute], f"{where}.{found.attribute_map[attribute]}")


if __name__ == "__main__":
    said: list[str] = []
    count = 0
    for file in sys.argv[1:]:
        for manifest in yaml.safe_load_all(Path(file).read_text(encoding="utf-8")):
            _, kind = KINDS[manifest["kind"]]
            said += problems(manifest, kind, manifest["kind"])
            count += 1
    if said:
        sys.exit("\n".join(said))
    print(f"{count} are as they should be")
