"""What an artifact is called: a SHA-256 over everything that determines its bytes, and over nothing else."""

from collections.abc import Mapping
from typing import Any

from serveprune.artifacts.digest import sha256_json
from serveprune.artifacts.manifest import FileRecord, Manifest
from serveprune.artifacts.source_content import dataset_content, file_content, preprocessing_content, source_content
from serveprune.config.model import ModelConfig, Preprocessing
from serveprune.config.profile import PassConfig, ProfileConfig

IMPORTER_REVISION = 3
"""Raise it when importing would write a different graph for the same source."""

MEASUREMENT_REVISION = 2
"""Raise it when measuring would give other figures for the same graphs."""


def source_recipe(model: ModelConfig) -> str:
    """Return the digest of all that importing a model depends on, apart from the environment.

    Raises:
        NotFound: A file, folder or module that the source names does not exist.
        FailedPrecondition: It exists and cannot be read.
    """
    return sha256_json(
        {
            "importer": IMPORTER_REVISION,
            "source": source_content(model.source),
            "preprocessing": preprocessing_content(model.preprocessing),
        }
    )


def tier_recipe(dense_key: str, model: ModelConfig, profile: ProfileConfig, *, threads: int) -> str:
    """Return the digest of all that a tier and its measurements depend on, apart from the environment.

    The gate is left out: it is judged from the manifest's measurements whenever the artifact is used, so a
    changed gate needs no new build. So are names.

    Args:
        dense_key: Key of the graph the tier is made from.
        model: What the samples are and how they are read.
        profile: The passes.
        threads: Threads of one batch in serving, with which latency is measured.

    Raises:
        NotFound: A calibration or evaluation file, or the tokenizer, does not exist.
        FailedPrecondition: It exists and cannot be read.
    """
    # Left out where it is the default, so that what was built before there was a choice is still found.
    backend = {} if model.backend == "onnxruntime" else {"backend": model.backend}
    return sha256_json(
        {
            **backend,
            "dense": dense_key,
            "threads": threads,
            "passes": [_pass_content(step) for step in profile.passes],
            "measurement": MEASUREMENT_REVISION,
            # Decides which metrics the manifest holds.
            "task": [model.task, getattr(model.source, "task", None)],
            # Decides what the graph sees of each sample.
            "preprocessing": preprocessing_content(model.preprocessing),
            "calibration": dataset_content(model.calibration, role="calibration"),
            "evaluation": dataset_content(model.evaluation, role="evaluation"),
        }
    )


def tier_packages(model: ModelConfig, profile: ProfileConfig) -> frozenset[str]:
    """Return the optional packages whose version decides a tier's bytes or figures."""
    measured = {"openvino"} if model.backend != "onnxruntime" else set()
    quantizations = [step.quantize for step in profile.passes if step.quantize is not None]
    made = {"nncf"} if any(options.scheme == "nncf" for options in quantizations) else set()
    return frozenset(measured | made)


def _pass_content(step: PassConfig) -> dict[str, Any]:
    options = step.options.model_dump(mode="json")
    for place, path in step.options.files().items():
        *sections, last = place.split(".")
        section = options
        for name in sections:
            section = section[name]
        section[last] = file_content(path, role=f"{step.name}.{place}")
    return {"name": step.name, "revision": step.options.revision, "options": options}


def artifact_key(recipe: str, environment: Mapping[str, str]) -> str:
    """Return the key of what a recipe gives in an environment."""
    return sha256_json({"recipe": recipe, "environment": dict(environment)})


def dense_key(files: Mapping[str, FileRecord], *, preprocessing: Preprocessing | None = None) -> str:
    """Return the key of an imported graph: a digest of its content.

    Args:
        files: The artifact's files.
        preprocessing: What the source declares (`Manifest.preprocessing`). It is content too: two sources
            that differ in nothing else would otherwise share one artifact, and the first one's manifest.
    """
    declared = None if preprocessing is None else preprocessing.model_dump(mode="json")
    digests = {name: record.sha256 for name, record in files.items()}
    return sha256_json({"files": digests, "preprocessing": declared})


def manifest_key(manifest: Manifest) -> str:
    """Return the key that fits what a manifest says."""
    if manifest.kind == "dense":
        return dense_key(manifest.files, preprocessing=manifest.preprocessing)
    return artifact_key(manifest.recipe, manifest.environment)
