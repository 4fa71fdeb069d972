"""What the environment says in place of defaults; what the file says always goes first.

A container image sets these two: there the usual defaults, the loopback address and a folder beside the file, would
reach nobody and be read-only.
"""

import ipaddress
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from serveprune.config.problem import Problem
from serveprune.config.server import AdminConfig, ServerConfig, parse_address

HOST = "SERVEPRUNE_HOST"
STORE = "SERVEPRUNE_STORE"

_FRONT_ENDS = ("http", "grpc", "metrics")
_ADMIN_FRONT_ENDS = ("http", "grpc")
_NOTHING: Mapping[str, Any] = MappingProxyType({})


def completed_by_surroundings(data: dict[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the document with the environment's host and store where it names none itself.

    An environment that says nothing leaves the document as it is, and so does a section of another form than
    expected, which is reported elsewhere.
    """
    host, store = environment.get(HOST), environment.get(STORE)
    if host:
        server = _section(data, "server")
        if server is not None:
            addresses: dict[str, Any] = {name: _address(ServerConfig, name, host) for name in _FRONT_ENDS}
            if isinstance(admin := server.get("admin"), Mapping):
                addresses["admin"] = {name: _address(AdminConfig, name, host) for name in _ADMIN_FRONT_ENDS} | {**admin}
            given = {name: value for name, value in server.items() if name != "admin" or "admin" not in addresses}
            data = {**data, "server": {**addresses, **given}}
    if store and (section := _section(data, "store")) is not None:
        # Of a store that machines share it is where the copies of this one lie; of another that is of no account.
        data = {**data, "store": {"cache_path" if "path" in section else "path": store, **section}}
    return data


def problems_of_surroundings(environment: Mapping[str, str]) -> list[Problem]:
    """Return what is wrong with the variables themselves."""
    host = environment.get(HOST)
    if not host:
        return []
    try:
        parse_address(f"{_bracketed(host)}:0")
    except ValueError:
        return [Problem((), f"expected {HOST} to be a host such as 0.0.0.0 or ::, without a port, got {host!r}")]
    return []


def warnings_of_surroundings(server: ServerConfig, environment: Mapping[str, str]) -> list[str]:
    """Return a warning for each address of the file that only this machine, or container, reaches, against the host."""
    host = environment.get(HOST)
    if not host or is_loopback(host):
        return []
    named = {f"server.{name}": getattr(server, name) for name in _FRONT_ENDS}
    return [
        f"{name} is {address} in the config, so it is reached from here only, although {HOST} is {host}; "
        "leave it out of the config to listen there"
        for name, address in named.items()
        if is_loopback(address.host)
    ]


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _section(data: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    section = data.get(name, _NOTHING)
    return section if isinstance(section, Mapping) else None


def _address(model: type[ServerConfig] | type[AdminConfig], name: str, host: str) -> str:
    return f"{_bracketed(host)}:{model.model_fields[name].default.port}"


def _bracketed(host: str) -> str:
    # A port behind a host has one colon, an address of IPv6 at least two.
    return f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host
