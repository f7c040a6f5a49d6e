"""What a worker knows of what is beyond it: the other workers, the broker of ours, the settings in force."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from fleet.config.settings import Settings
from fleet.servers.gateway.session.holders import HeldElsewhere


class Supervision(Protocol):
    @property
    def workers(self) -> Mapping[str, object]:
        """What is known of all workers; nothing before the supervisor has said it, two seconds after its start."""

    @property
    def counters(self) -> Mapping[str, Mapping[str, Any]]:
        """Number -> counters of each worker, as it said up to two seconds ago; nothing when there is no supervisor."""

    @property
    def not_saved(self) -> str:
        """Why our own broker can't save what it holds; "" while it can."""

    @property
    def broker_stops(self) -> bool:
        """Whether our own broker is stopped after this worker, and not just the worker."""

    @property
    def held_elsewhere(self) -> HeldElsewhere | None:
        """Asks whether another worker holds a session; None: there is no other."""

    def settings(self) -> Settings:
        """Those in force."""


class Alone:
    """Of a worker that has no supervisor. `settings` and `not_saved` are asked for those of the moment."""

    held_elsewhere = None
    broker_stops = True
    counters: Mapping[str, Mapping[str, Any]] = MappingProxyType({})

    def __init__(self, settings: Callable[[], Settings], not_saved: Callable[[], str] = str) -> None:
        self._settings, self._not_saved = settings, not_saved

    @property
    def workers(self) -> Mapping[str, object]:
        return {"count": 1, "restarts": 0}

    @property
    def not_saved(self) -> str:
        return self._not_saved()

    def settings(self) -> Settings:
        return self._settings()
