"""The table [apps] of agent.toml: which users and groups may use the control socket, and for which topics."""

from dataclasses import dataclass
from typing import Any

from device_agent.config.topics import filter_for
from fleet.est_client.errors import BadConfig

CLIENTS_MAX = 64
FILTERS_MAX = 64  # of one client, each way
_KEYS = {"user", "group", "publish", "subscribe"}


@dataclass(frozen=True, slots=True)
class AppRule:
    """What the programs of one user, or of one group, may do. `{id}` in a filter is the device id."""

    user: str | int | None
    group: str | int | None
    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AppsConfig:
    """The table [apps] of agent.toml."""

    group: str | int | None = None
    """May open the socket, besides its owner."""
    clients: tuple[AppRule, ...] = ()


NO_APPS = AppsConfig()


def read_apps(where: str, table: Any) -> AppsConfig:
    """The AppsConfig in a TOML table. Raises: BadConfig, which begins with `where`."""
    if not isinstance(table, dict):
        raise BadConfig(f"{where}: apps must be a table, [apps].")
    for key in table.keys() - {"group", "client"}:
        raise BadConfig(f"{where}: there is no setting {f'apps.{key}'!r}.", "Check its spelling and its [section].")
    clients = table.get("client", [])
    if not isinstance(clients, list) or len(clients) > CLIENTS_MAX:
        raise BadConfig(f"{where}: apps.client must be up to {CLIENTS_MAX} tables, [[apps.client]].")
    return AppsConfig(
        group=_name(where, "apps.group", table.get("group")),
        clients=tuple(_rule(where, each) for each in clients),
    )


def _rule(where: str, table: Any) -> AppRule:
    if not isinstance(table, dict):
        raise BadConfig(f"{where}: apps.client must be tables, [[apps.client]].")
    for key in table.keys() - _KEYS:
        raise BadConfig(
            f"{where}: there is no setting {f'apps.client.{key}'!r}.", f"One of: {', '.join(sorted(_KEYS))}."
        )
    user = _name(where, "apps.client.user", table.get("user"))
    group = _name(where, "apps.client.group", table.get("group"))
    if user is None and group is None:
        raise BadConfig(f"{where}: [[apps.client]] needs a user or a group.")
    return AppRule(
        user,
        group,
        _filters(where, "apps.client.publish", table.get("publish", [])),
        _filters(where, "apps.client.subscribe", table.get("subscribe", [])),
    )


def _name(where: str, key: str, value: Any) -> str | int | None:
    is_number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32 - 1
    if value is None or is_number or (isinstance(value, str) and value):
        return value if isinstance(value, str | int) else None
    raise BadConfig(f"{where}: {key} must be a name or a number.")


def _filters(where: str, key: str, value: Any) -> tuple[str, ...]:
    is_list = isinstance(value, list) and len(value) <= FILTERS_MAX
    if not is_list or not all(isinstance(each, str) for each in value):
        raise BadConfig(f"{where}: {key} must be a list of up to {FILTERS_MAX} topic filters.")
    try:
        return tuple(filter_for(each, "id") and each for each in value)
    except BadConfig as error:
        raise BadConfig(f"{where}: {key}: {error.message}", error.advice) from None
