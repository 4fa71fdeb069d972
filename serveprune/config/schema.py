from typing import Any

from serveprune.config.root import ServePruneConfig

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def config_schema() -> dict[str, Any]:
    """Return the JSON Schema of ``serveprune.yaml``, for editors and validators.

    It holds what can be said of each value alone; `load_config` also judges files and references.
    """
    schema = ServePruneConfig.model_json_schema()
    return {"$schema": _DIALECT, **schema, "title": "serveprune.yaml"}
