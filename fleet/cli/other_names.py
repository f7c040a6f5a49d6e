"""Commands by the names that other tools give them: an error names ours."""

from collections.abc import Mapping

import click
from click.exceptions import NoSuchCommand

_ONE_DEVICE = "fleet audit list --device DEVICE_ID"
_KICK = "fleet session kick DEVICE_ID"

OTHER_NAMES: Mapping[str, Mapping[str, str]] = {
    "": {
        **dict.fromkeys(("events", "log", "history"), f"{_ONE_DEVICE}, or fleet event list"),
        **dict.fromkeys(("metrics", "stats"), "fleet status --url URL, or GET /v1/metrics for Prometheus"),
        **dict.fromkeys(("user", "users", "admin"), "fleet operator --help"),
        **dict.fromkeys(("client", "clients", "connection", "connections"), "fleet session list"),
    },
    "device": {
        **dict.fromkeys(("events", "event", "log", "history", "audit"), _ONE_DEVICE),
        **dict.fromkeys(("delete", "remove"), "fleet device retire DEVICE_ID"),
        **dict.fromkeys(("disconnect", "kick"), _KICK),
        **dict.fromkeys(("disable", "block"), "fleet device suspend DEVICE_ID"),
        **dict.fromkeys(("enable", "unblock", "unsuspend"), "fleet device resume DEVICE_ID"),
        **dict.fromkeys(("enroll", "token"), "fleet token create --device DEVICE_ID"),
        **dict.fromkeys(("approve", "deny"), "fleet request --help"),
    },
    "session": dict.fromkeys(("close", "disconnect", "end"), _KICK),
    "audit": {"check": "fleet audit verify", **dict.fromkeys(("show", "search"), "fleet audit list --help")},
    "backup": dict.fromkeys(("create", "save"), "fleet backup take FILE"),
    "policy": dict.fromkeys(("check", "explain"), "fleet policy test --help"),
}
"""Group, "" for none -> a name that it does not have -> what to run."""


def with_our_name(error: NoSuchCommand) -> click.UsageError:
    """`error`, with what to run if the name is one of OTHER_NAMES."""
    context = error.ctx
    if context is None:
        return error
    group = "" if context.parent is None else context.command.name or ""
    if (ours := OTHER_NAMES.get(group, {}).get(error.command_name)) is None:
        return error
    return click.UsageError(f"No such command '{error.command_name}'. See: {ours}", context)
