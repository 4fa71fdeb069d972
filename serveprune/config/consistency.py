"""What the parts of a config must agree on.

Judged on the plain document, not on validated models, so that one wrong value does not hide what else is wrong.
Values of the wrong type are passed over here: validation reports them.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from serveprune.config.model import DENSE
from serveprune.config.problem import KeyPath, Problem, suggestion
from serveprune.config.server import Address, ServerConfig, parse_address


def consistency_problems(data: Mapping[str, Any]) -> list[Problem]:
    """Find references to nothing, and values that exclude each other."""
    checks: tuple[Callable[[Mapping[str, Any]], Iterator[Problem]], ...] = (
        _tiers_without_profile,
        _misplaced_versions,
        _static_passes_without_calibration,
        _deployments_without_model_or_tier,
        _shared_ports,
        _processes_without_executor,
        _nothing_to_serve,
        _load_at_start_of_another_mode,
    )
    return [problem for check in checks for problem in check(data)]


def _tiers_without_profile(data: Mapping[str, Any]) -> Iterator[Problem]:
    profiles = [name for name in _mapping(data, "profiles") if name != DENSE]
    for name, model in _mappings(data, "models"):
        for index, tier in enumerate(_texts(model, "tiers")):
            if tier is not None and tier not in (DENSE, *profiles):
                known = f"profiles: {', '.join(profiles)}" if profiles else "there are no profiles"
                yield Problem(
                    ("models", name, "tiers", index),
                    f"expected {DENSE} or the name of a profile, got {tier!r}"
                    f"{suggestion(tier, profiles) or ';'} {known}",
                )


def _misplaced_versions(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Find what is said of several versions where there is one, the other way round, and policies that name none."""
    for name, model in _mappings(data, "models"):
        versions = list(_mapping(model, "versions"))
        if versions and "version" in model:
            yield Problem(
                ("models", name, "version"), "expected no version beside versions, whose keys they are, got one"
            )
        if model.get("source") is not None and "version_policy" in model:
            yield Problem(
                ("models", name, "version_policy"), "expected this with versions only, got it with one source"
            )
        for index, version in enumerate(_texts(model, "version_policy") if versions else ()):
            if version is not None and version not in versions:
                yield Problem(
                    ("models", name, "version_policy", index),
                    f"expected one of the versions, got {version!r}{suggestion(version, versions) or ';'} "
                    f"versions: {', '.join(versions)}",
                )


def _static_passes_without_calibration(data: Mapping[str, Any]) -> Iterator[Problem]:
    static = {
        name: _mapping(entry, "quantize")["scheme"]
        for name, profile in _mappings(data, "profiles")
        for entry in _entries(profile, "passes")
        if isinstance(entry, Mapping) and _mapping(entry, "quantize").get("scheme") in ("static", "nncf")
    }
    for name, model in _mappings(data, "models"):
        needing = [tier for tier in _texts(model, "tiers") if tier in static]
        versions = _mapping(model, "versions")
        lacking = [
            version for version, one in versions.items() if isinstance(one, Mapping) and one.get("calibration") is None
        ]
        if needing and model.get("calibration") is None and (lacking or not versions):
            yield Problem(
                ("models", name, "calibration"),
                f"expected a calibration set, because profile {needing[0]} quantizes with scheme {static[needing[0]]}, "
                "got none",
            )


def _deployments_without_model_or_tier(data: Mapping[str, Any]) -> Iterator[Problem]:
    models = _mapping(data, "models")
    for name, deployment in _mapping(data, "deployments").items():
        path: KeyPath = ("deployments", name)
        if name not in models and _has_repository(data):
            continue  # it may be the name of a model of the repository, which is judged when that is loaded
        if name not in models:
            known = f"models: {', '.join(models)}" if models else "there are no models"
            yield Problem(path, f"expected the name of a model, got {name!r}{suggestion(name, models) or ';'} {known}")
        elif isinstance(deployment, Mapping) and isinstance(models[name], Mapping):
            tiers = list(dict.fromkeys([DENSE, *filter(None, _texts(models[name], "tiers"))]))
            for key, tier in _tiers_of_deployment(deployment):
                if isinstance(tier, str) and tier not in tiers:
                    known = f"tiers: {', '.join(tiers)}"
                    yield Problem(
                        (*path, *key),
                        f"expected a tier of {name}, got {tier!r}{suggestion(tier, tiers) or ';'} {known}",
                    )


def _tiers_of_deployment(deployment: Mapping[str, Any]) -> Iterator[tuple[KeyPath, Any]]:
    yield ("default_tier",), deployment.get("default_tier")
    yield ("stable",), deployment.get("stable")
    for section in ("canary", "shadow"):
        yield (section, "tier"), _mapping(deployment, section).get("tier")
    for tier in _mapping(deployment, "split"):
        yield ("split", tier), tier


def _shared_ports(data: Mapping[str, Any]) -> Iterator[Problem]:
    server = _mapping(data, "server")
    taken: list[tuple[str, Address]] = []
    # Those that are written come last, so that a clash with a default is reported where there is a line.
    front_ends = sorted(("http", "grpc", "metrics"), key=lambda name: name in server)
    for name in front_ends:
        try:
            address = parse_address(server.get(name, ServerConfig.model_fields[name].default))
        except ValueError:
            continue
        rival = next((other for other, its in taken if _clash(address, its)), None)
        if rival is not None:
            yield Problem(
                ("server", name),
                f"expected a port of its own, got {address}, which server.{rival} takes already",
            )
        taken.append((name, address))


def _processes_without_executor(data: Mapping[str, Any]) -> Iterator[Problem]:
    server = _mapping(data, "server")
    processes, executors = server.get("processes"), server.get("executors")
    # A default number of executors is that of the cores, which differs between machines that share a config.
    if isinstance(processes, int) and isinstance(executors, int) and executors < processes:
        yield Problem(
            ("server", "processes"),
            f"expected no more than server.executors ({executors}), for each process computes with at least one, "
            f"got {processes}",
        )


def _nothing_to_serve(data: Mapping[str, Any]) -> Iterator[Problem]:
    if data.get("models") == {} and not _has_repository(data):
        yield Problem(("models",), "expected at least 1 entry, got an empty mapping")


def _load_at_start_of_another_mode(data: Mapping[str, Any]) -> Iterator[Problem]:
    repository = _mapping(data, "repository")
    mode = repository.get("mode", "none")
    if repository.get("load_at_start") and mode in ("none", "poll"):
        yield Problem(
            ("repository", "load_at_start"), f"expected this with mode explicit only, got it with mode {mode}"
        )


def _has_repository(data: Mapping[str, Any]) -> bool:
    return _mapping(data, "repository").get("mode", "none") in ("explicit", "poll")


def _clash(one: Address, other: Address) -> bool:
    everywhere = {"0.0.0.0", "::"}
    same_host = one.host == other.host or not everywhere.isdisjoint({one.host, other.host})
    return same_host and one.port == other.port != 0


def _mapping(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key)
    return value if isinstance(value, Mapping) else {}


def _mappings(data: Mapping[str, Any], key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return ((name, value) for name, value in _mapping(data, key).items() if isinstance(value, Mapping))


def _texts(data: Mapping[str, Any], key: str) -> list[str | None]:
    """Return the list under a key, ``None`` in the place of what is not text."""
    return [entry if isinstance(entry, str) else None for entry in _entries(data, key)]


def _entries(data: Mapping[str, Any], key: str) -> list[Any]:
    value = data.get(key)
    return value if isinstance(value, list) else []
