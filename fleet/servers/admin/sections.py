"""Which module of handlers has the routes below a path. What is not in this table is refused.

A command at a home loads the one module that it calls, and not every service; a server loads all.
"""

import importlib
from collections.abc import Sequence
from functools import cache

from fleet.servers.admin.routing import Route

SECTIONS = {
    **dict.fromkeys(("healthz", "status", "metrics", "openapi.json", "forecast", "retention"), "reports"),
    **dict.fromkeys(("whoami", "credentials", "authorities"), "credentials"),
    **{name: name for name in ("models", "devices", "bulk", "manifest", "tokens", "claims", "anchors", "requests")},
    **{name: name for name in ("stations", "operators", "audit", "events", "crls", "distrusts", "sessions")},
}
"""The first segment of a path after /v1, and its module."""


def routes_at(path: str) -> Sequence[Route]:
    """The routes among which that of `path` is, if there is one."""
    section = path.removeprefix("/v1").removeprefix("/").partition("/")[0]
    return routes_of(SECTIONS[section]) if section in SECTIONS else ()


@cache
def routes_of(module: str) -> Sequence[Route]:
    """The routes that a module declares."""
    handlers = importlib.import_module(f"fleet.servers.admin.handlers.{module}")
    return tuple(value for value in vars(handlers).values() if isinstance(value, Route))


def all_routes() -> Sequence[Route]:
    """Every route of the API."""
    return tuple(route for module in dict.fromkeys(SECTIONS.values()) for route in routes_of(module))
