"""Presence of a process: what it held when it was killed is over once its worker is there again."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from fleet.config.settings import Settings
from fleet.domain.peer import Peer
from fleet.domain.presence import RUN_ENDED, SessionState
from fleet.home.layout import Home
from fleet.runtime.jobs.presence import recording_presence
from fleet.services.presence import Presence
from fleet.storage.sqlite.registry import SqliteRegistry


class Killed(Exception):
    pass


def now() -> datetime:
    return datetime.now(UTC)


async def states(registry: SqliteRegistry) -> dict[str, tuple[str, str]]:
    return {each.session.client_id: (each.state(now()), each.reason) for each in await registry.sessions()}


async def test_a_worker_that_was_killed_and_one_that_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, settings = Home(tmp_path), Settings()
    registry = await SqliteRegistry.open(tmp_path / "registry.db")
    try:
        async with recording_presence(home, settings, registry, 2, now) as other:
            other.opened("cam-2", "cam-2", Peer("192.0.2.2"), "5.0")
            await other.write()

            async def killed(presence: Presence) -> None:
                """It has no time to write anything."""

            with monkeypatch.context() as patched, pytest.raises(Killed):
                patched.setattr(Presence, "close", killed)
                async with recording_presence(home, settings, registry, 1, now) as presence:
                    presence.opened("cam-1", "cam-1", Peer("192.0.2.1"), "5.0")
                    await presence.write()
                    raise Killed
            connected, lost = (SessionState.CONNECTED, ""), (SessionState.DISCONNECTED, RUN_ENDED)
            assert await states(registry) == {"cam-1": connected, "cam-2": connected}  # nobody knows yet
            async with recording_presence(home, settings, registry, 1, now) as again:
                assert await states(registry) == {"cam-1": lost, "cam-2": connected}
                session = again.opened("cam-1", "cam-1", Peer("192.0.2.1"), "5.0")
                await again.write()
                assert (await states(registry))["cam-1"] == connected
                again.ended(session, "shutting-down")
            assert (await states(registry))["cam-1"] == (SessionState.DISCONNECTED, "shutting-down")
    finally:
        await registry.close()
