"""The server certificate is renewed while it serves, by one process, and everybody hears of it."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.config.settings import Settings
from fleet.home.authorities import new_issuing_key
from fleet.home.creation import create_home
from fleet.home.layout import Home, settings_of
from fleet.home.pki import server_identity
from fleet.home.reloading_ca import LiveAuthorities
from fleet.runtime.jobs import server_certificate
from fleet.runtime.jobs.server_certificate import RETRY_SECONDS, Contexts, renew_daily, renew_if_due
from fleet.runtime.live_settings import LiveSettings
from tests.servers.makers import new_maker
from tests.waiting import PATIENCE_SECONDS

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


LATER = NOW + timedelta(days=300)  # less than a third of its life is left


async def new_home(folder: Path) -> Home:
    return await create_home(folder / "home", Settings(), NOW)


async def test_it_is_renewed_when_its_day_has_come_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_certificate, "RENEWAL_CHECK_SECONDS", 0)
    home = await new_home(tmp_path)
    first = server_identity(home).certificate_chain[0]
    looked_at = iter([NOW, NOW])
    renewed = asyncio.Event()
    daily = asyncio.create_task(renew_daily(home, Settings, lambda: next(looked_at, LATER), renewed.set))
    await asyncio.wait_for(renewed.wait(), PATIENCE_SECONDS)
    daily.cancel()
    assert next(looked_at, None) is None  # two looks found nothing to do
    second = server_identity(home).certificate_chain[0]
    assert second.not_valid_after_utc > first.not_valid_after_utc
    assert second.public_key() == first.public_key()


async def test_what_stands_in_the_way_is_logged_and_serving_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = await new_home(tmp_path)
    home.issuing_key.unlink()
    assert not renew_if_due(home, Settings(), lambda: LATER)
    assert "outcome=not-renewed" in caplog.text


async def test_makers_are_believed_by_est_alone(tmp_path: Path) -> None:
    home = await new_home(tmp_path)
    maker = new_maker().certificate
    contexts = Contexts.of(home, lambda: NOW)
    before = contexts.est.current
    contexts.trust(home, [])
    assert contexts.est.current is before  # nothing has changed
    contexts.trust(home, [maker])
    der = maker.public_bytes(Encoding.DER)
    assert der in contexts.est.current.anchors.values()
    assert der not in contexts.mqtt.current.anchors.values()
    assert der not in contexts.http.current.anchors.values()
    contexts.reload(home)  # for another reason
    assert der in contexts.est.current.anchors.values()
    contexts.trust(home, [])
    assert der not in contexts.est.current.anchors.values()


async def test_a_reload_swaps_both_contexts_or_neither(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    home = await new_home(tmp_path)
    contexts = Contexts.of(home, lambda: NOW)
    before = contexts.mqtt.current, contexts.est.current
    chain = home.server_chain.read_bytes()
    home.server_chain.write_bytes(b"")
    contexts.reload(home)
    assert (contexts.mqtt.current, contexts.est.current) == before
    assert "outcome=failed kept=old" in caplog.text
    home.server_chain.write_bytes(chain)
    contexts.reload(home)
    assert contexts.mqtt.current is not before[0]
    assert contexts.est.current is not before[1]
    assert "event=reload outcome=ok" in caplog.text


async def test_a_new_ca_is_trusted_before_the_servers_certificate_is_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Devices connect with what it issues; `fleet ca rollover --root` replaces server.pem last."""
    home = await new_home(tmp_path)
    contexts, authorities = Contexts.of(home, lambda: NOW), LiveAuthorities(home)
    contexts.follow(authorities, home)
    presented = contexts.identity
    made = new_issuing_key(home, "", NOW, root_too=True)
    authorities.reread()
    assert "outcome=failed kept=old" in caplog.text
    for source in (contexts.mqtt, contexts.wss, contexts.est, contexts.http):
        assert made.issuing.public_bytes(Encoding.DER) in source.current.anchors.values()
    assert contexts.identity is presented
    renew_if_due(home, Settings(), lambda: NOW)
    authorities.reread()
    assert contexts.identity.certificate_chain[0].issuer == made.issuing.subject


async def test_a_certificate_that_clients_reject_is_reported_when_it_is_reloaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = await new_home(tmp_path)
    now = NOW
    contexts = Contexts.of(home, lambda: now)
    contexts.reload(home)
    assert not warnings_in(caplog)
    now = NOW + timedelta(days=4000)  # nobody renewed it
    contexts.reload(home)
    [record] = warnings_in(caplog)
    assert record.levelno == logging.WARNING
    assert "event=server-certificate outcome=needs-attention" in record.getMessage()


async def test_a_ca_that_was_removed_during_a_failed_reload_is_not_trusted_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = await new_home(tmp_path)
    maker = new_maker().certificate
    now = [1000.0]
    monkeypatch.setattr("fleet.runtime.jobs.server_certificate.time.monotonic", lambda: now[0])
    contexts = Contexts.of(home, lambda: NOW, manufacturers=[maker])
    contexts.follow(LiveAuthorities(home), home)
    operators = home.operators_certificate.read_bytes()
    home.operators_certificate.write_bytes(b"")
    contexts.trust(home, [])
    home.operators_certificate.write_bytes(operators)
    der = maker.public_bytes(Encoding.DER)
    assert der in contexts.est.current.anchors.values()
    now[0] += RETRY_SECONDS
    assert der not in contexts.est.current.anchors.values()
    settled = contexts.est.current
    now[0] += RETRY_SECONDS
    assert contexts.est.current is settled


async def test_a_reload_says_which_settings_need_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    home = await new_home(tmp_path)
    live, text = LiveSettings(home, settings_of(home)), home.settings_file.read_text()
    live.reread()
    assert not warnings_in(caplog)
    home.settings_file.write_text(text.replace("trusted = []", "trusted = ['192.0.2.1']"))
    live.reread()
    assert "event=settings outcome=restart-needed" in caplog.text
    assert "proxy_protocol.trusted" in caplog.text
    caplog.clear()
    home.settings_file.write_text(text.replace("trusted = []", "trusted = 7"))
    live.reread()
    assert "event=settings outcome=failed" in caplog.text
    assert "fleet.toml, line " in caplog.text
    caplog.clear()
    Contexts.of(home, lambda: NOW).reload(home)
    assert "event=server-certificate" not in caplog.text  # which is well
