"""`fleet session`: who is connected, at a home, and what `fleet device show` says of it."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from click.testing import CliRunner

from fleet.cli import main
from fleet.domain.presence import ClientSession, GatewayRun
from fleet.storage.sqlite.registry import SqliteRegistry


def run(home: Path, *arguments: str) -> str:
    done = CliRunner().invoke(main, arguments, env={"FLEET_HOME": str(home)})
    assert done.exit_code == 0, (arguments, done.output)
    return done.stdout


def connect(home: Path) -> None:
    """cam-1 is connected; cam-2 was."""

    async def note() -> None:
        registry = await SqliteRegistry.open(home / "registry.db")
        here = GatewayRun("aa" * 8, "host:/home", 1, datetime.now(UTC))
        since = here.seen_at - timedelta(hours=1)
        more = ("192.0.2.7", here.node, here.run, "5.0", "TLSv1.3", "X25519")
        try:
            await registry.begin_run(here)
            gone = ClientSession("cam-2", "cam-2", since, since, here.seen_at, "keep-alive", *more)
            await registry.note_sessions([ClientSession("cam-1", "cam-1", since, since, None, "", *more), gone], here)
        finally:
            await registry.close()

    asyncio.run(note())


def test_list_show_and_kick(home: Path) -> None:
    for name in ("cam-1", "cam-2"):
        run(home, "device", "add", name, "--model", "default")
    assert json.loads(run(home, "session", "list", "-o", "json")) == []
    connect(home)
    heading, first, second = run(home, "session", "list").splitlines()
    assert heading.split()[:7] == ["DEVICE", "ID", "CLIENT", "ID", "STATE", "CONNECTED", "AT"]
    assert first.split()[:3] == ["cam-1", "cam-1", "connected"]
    assert " connected " in first
    assert " keep-alive " in second
    for option, expected in (("--connected", "cam-1"), ("--disconnected", "cam-2")):
        [found] = json.loads(run(home, "session", "list", option, "-o", "json"))
        assert found["client_id"] == expected
    assert json.loads(run(home, "session", "list", "--device", "cam-2", "--connected", "-o", "json")) == []
    [shown] = json.loads(run(home, "session", "show", "cam-1", "-o", "json"))["sessions"]
    assert (shown["state"], shown["address"], shown["tls_group"]) == ("connected", "192.0.2.7", "X25519")
    assert json.loads(run(home, "device", "show", "cam-1", "-o", "json"))["sessions"] == [shown]
    assert "192.0.2.7" in run(home, "device", "show", "cam-1")
    kicked = json.loads(run(home, "session", "kick", "cam-1", "--will", "--reason", "stuck", "-o", "json"))
    assert kicked == {"device_id": "cam-1", "client_ids": ["cam-1"], "will": True}
    missed = CliRunner().invoke(main, ["session", "kick", "cam-1", "--client-id", "x"], env={"FLEET_HOME": str(home)})
    assert missed.exit_code != 0
    assert "there is no session 'x'." in missed.stderr
    [row] = json.loads(run(home, "audit", "list", "--action", "session.kick", "-o", "json"))
    assert (row["subject"], row["detail"]) == ("device cam-1", {"will": "published", "reason": "stuck"})
