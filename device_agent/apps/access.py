"""Who may use the control socket, and for which topics: by user and group, as the kernel says."""

import grp
import os
import pwd
from dataclasses import dataclass

from device_agent.apps.control_server import Peer
from device_agent.apps.shares import is_owner
from device_agent.config.apps import AppRule, AppsConfig
from device_agent.config.topics import filter_for
from fleet.est_client.errors import BadConfig
from fleet.wire.topic_filters import covers, matches

PEERS_KNOWN_MAX = 256


@dataclass(frozen=True, slots=True)
class Rights:
    """What one user may do."""

    owner: bool = False
    listed: bool = False
    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()

    def may_publish(self, topic: str) -> bool:
        return self.owner or any(matches(each, topic) for each in self.publish)

    def may_subscribe(self, topic_filter: str) -> bool:
        return self.owner or any(covers(each, topic_filter) for each in self.subscribe)


class Access:
    """Root, and the user that the agent runs as, may do everything; others what their rules say.

    Raises: BadConfig if a rule names no user or group of this system, or an invalid filter.
    """

    def __init__(self, config: AppsConfig, device_id: str) -> None:
        self._known: dict[Peer, Rights] = {}
        self._rules: list[tuple[int | None, int | None, AppRule]] = []
        for rule in config.clients:
            uid = user_id(rule.user) if rule.user is not None else None
            gid = group_id(rule.group) if rule.group is not None else None
            publish = tuple(filter_for(each, device_id) for each in rule.publish)
            subscribe = tuple(filter_for(each, device_id) for each in rule.subscribe)
            self._rules.append((uid, gid, AppRule(rule.user, rule.group, publish, subscribe)))

    def rights(self, peer: Peer) -> Rights:
        """What the programs of `peer` may do. Groups are read once: a change of them counts after a restart."""
        if peer not in self._known:
            if len(self._known) >= PEERS_KNOWN_MAX:
                self._known.clear()
            self._known[peer] = self._find(peer)
        return self._known[peer]

    def _find(self, peer: Peer) -> Rights:
        if is_owner(peer.uid):
            return Rights(owner=True, listed=True)
        if not self._rules:
            return Rights()
        groups = _groups(peer)
        found = [
            rule
            for uid, gid, rule in self._rules
            if (uid is None or uid == peer.uid) and (gid is None or gid in groups)
        ]
        return Rights(
            listed=bool(found),
            publish=tuple(each for rule in found for each in rule.publish),
            subscribe=tuple(each for rule in found for each in rule.subscribe),
        )


def socket_gid(config: AppsConfig) -> int | None:
    """The group that may open the socket; None for none. Raises: BadConfig."""
    if config.group is None:
        return None
    gid = group_id(config.group)
    if os.geteuid() != 0 and gid not in (os.getegid(), *os.getgroups()):
        raise BadConfig(f"The agent's user is not in the group {config.group!r}.", "Add it, or leave out apps.group.")
    return gid


def user_id(name: str | int) -> int:
    """The number of a user. Raises: BadConfig if this system has none of the name."""
    if isinstance(name, int):
        return name
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise BadConfig(f"There is no user {name!r} on this system.") from None


def group_id(name: str | int) -> int:
    """The number of a group. Raises: BadConfig if this system has none of the name."""
    if isinstance(name, int):
        return name
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise BadConfig(f"There is no group {name!r} on this system.") from None


def _groups(peer: Peer) -> set[int]:
    # The kernel tells one group of the peer; those that the system knows of its user count as well.
    try:
        return {peer.gid, *os.getgrouplist(pwd.getpwuid(peer.uid).pw_name, peer.gid)}
    except (KeyError, OSError):
        return {peer.gid}
