"""What of fleet.toml a running server takes up, and when."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

from fleet.config.addresses import parse_broker, parse_local_address
from fleet.config.settings import Settings
from fleet.config.template import render
from fleet.home.creation import create_home
from fleet.home.layout import Home, settings_of
from fleet.runtime.live_settings import BY_WORKERS, IN_PLACE, LiveSettings, settings_table
from fleet.runtime.reloading import renew_access
from fleet.runtime.upstream_access import upstream_access
from fleet.servers.gateway.broker.upstream import SocketUpstream


@pytest.fixture
async def home(tmp_path: Path) -> Home:
    return await create_home(tmp_path / "home", Settings(), datetime.now(UTC))


def write(home: Home, **changed: object) -> None:
    home.settings_file.write_text(render(replace(settings_of(home), **changed)))


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if "event=settings" in record.getMessage()]
    caplog.clear()
    return found


async def test_each_change_is_in_force_and_in_the_log_or_needs_what_the_log_says(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    live = LiveSettings(home, replace(settings_of(home), sessions_max=7))  # as an option or the system has it
    write(home, half_open_max=5, crl_hours=48, webhook_seconds_max=1.0)
    assert live.reread()
    assert live.current == replace(settings_of(home), sessions_max=7, crl_hours=24, webhook_seconds_max=5.0)
    found = lines(caplog)
    assert len(found) == 3
    assert "outcome=reloaded changed=limits.half_open_max" in found[0]
    assert "outcome=restart-needed changed=crl.hours" in found[1]
    assert "SIGUSR2" not in found[1]
    assert "outcome=restart-needed changed=webhook.webhook_seconds_max" in found[2]
    assert "SIGUSR2" in found[2]
    assert live.reread()
    assert lines(caplog) == []  # said already
    write(home, crl_hours=72)
    assert live.reread()
    assert [line.partition("changed=")[2].split()[0] for line in lines(caplog)] == ["crl.hours"]
    before = live.current
    assert live.reread(IN_PLACE | BY_WORKERS)
    assert live.current.webhook_seconds_max == 1.0
    live.put_back(before)
    assert live.current == before
    lines(caplog)
    live.reread()
    assert ["changed=webhook.webhook_seconds_max" in line for line in lines(caplog)] == [True]


async def test_what_is_put_back_leaves_what_was_read_since_and_options(home: Home) -> None:
    live = LiveSettings(home, replace(settings_of(home), half_open_max=7))  # as an option has it
    before = live.current
    write(home, webhook_seconds_max=1.0, half_open_per_address_max=11)
    assert live.reread(IN_PLACE | BY_WORKERS)
    write(home, half_open_per_address_max=12)
    assert live.reread()
    live.put_back(before, BY_WORKERS)
    assert live.current == replace(before, half_open_per_address_max=12)
    assert live.reread()
    assert live.current == replace(before, half_open_per_address_max=12)
    live.put_back(before)
    assert live.reread()
    assert live.current == replace(before, half_open_per_address_max=12)


@pytest.mark.parametrize("content", ["", "[limits]\nhalf_open_max = 0\n", "[limits\n", "[limits]\nunknown = 1\n"])
async def test_a_file_that_cannot_be_used_changes_nothing(
    home: Home, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    live = LiveSettings(home, settings_of(home))
    before, whole = live.current, home.settings_file.read_text()
    home.settings_file.write_text(content)
    assert not live.reread()
    assert live.current == before
    (line,) = lines(caplog)
    assert "outcome=failed kept=old" in line
    caplog.set_level("INFO")
    home.settings_file.write_text(whole)
    assert live.reread()
    assert lines(caplog) == ["event=settings outcome=unchanged"]


async def test_a_file_that_was_cut_off_is_refused_and_one_setting_less_is_taken(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    write(home, http_connections_max=50, half_open_max=5)
    live = LiveSettings(home, settings_of(home))
    whole, before = home.settings_file.read_text(), live.current
    rows = whole.splitlines(keepends=True)
    last = max(number for number, row in enumerate(rows) if row.startswith("["))
    for cut in ("".join(rows[:20]), "".join(rows[:last]), whole.rstrip()):
        home.settings_file.write_text(cut)
        assert not live.reread()
        assert "half-written" in lines(caplog)[0]
        assert live.current == before
    home.settings_file.write_text(whole.replace("\nhttp_connections_max", "\n# http_connections_max"))
    assert live.reread()
    assert live.current == replace(before, http_connections_max=Settings().http_connections_max)


@pytest.mark.parametrize("kind", ["pipe", "endless"])
async def test_a_pipe_or_device_holds_nobody_up(home: Home, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    live = LiveSettings(home, settings_of(home))
    home.settings_file.unlink()
    if kind == "pipe":
        os.mkfifo(home.settings_file, 0o600)
    else:
        home.settings_file.symlink_to("/dev/zero")
    assert not live.reread()
    assert "it is not a regular file" in lines(caplog)[0]


async def test_settings_that_need_others_of_a_restart_are_refused_whole(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker would refuse them: its listener keeps its port, and would have lost its secret."""
    here = parse_local_address("127.0.0.1:9")
    write(home, broker_auth=here, broker_auth_secret_file="ba.secret")
    live = LiveSettings(home, settings_of(home))
    before = live.current
    write(home, broker_auth=None, broker_auth_secret_file="", half_open_max=5)
    assert not live.reread(IN_PLACE | BY_WORKERS)
    (line,) = lines(caplog)
    assert "needs broker_auth.secret_file" in line
    assert live.current == before


async def test_the_password_for_an_external_broker_is_read_again(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    secret = home.path / "upstream.password"
    secret.touch(mode=0o600)
    secret.write_text("first\n")
    settings = replace(Settings(), upstream=parse_broker("unix:/nowhere"), upstream_password_file=secret.name)
    upstream = SocketUpstream(Path("/nowhere"), upstream_access(home, settings))
    assert upstream.access.password == b"first"
    secret.write_text("second\n")
    renew_access(upstream, home, settings)
    assert upstream.access.password == b"second"
    secret.chmod(0o644)
    renew_access(upstream, home, settings)
    assert upstream.access.password == b"second"
    assert "event=upstream-access outcome=failed kept=old" in caplog.text
    assert f"chmod 600 {secret}" in caplog.text
    assert "second" not in caplog.text


def test_the_page_has_the_table() -> None:
    assert settings_table() in (Path(__file__).parents[2] / "fleet" / "README.md").read_text()
