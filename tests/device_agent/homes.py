"""Homes with a certificate that no server was asked for."""

from datetime import UTC, datetime
from pathlib import Path

from device_agent.config.agent_config import NewHome, write_config
from device_agent.store.device_key import certificate_info
from device_agent.store.identity_store import Identity, IdentityStore
from tests.device_agent.fleet_parts import Authority, key_pem, pem

DEVICE = "cam-7"


def make_home(home: Path, authority: Authority, *, est: str = "https://localhost:1", mqtt_port: int = 1) -> Path:
    """Initialized, with a certificate in use."""
    write_config(home, NewHome(DEVICE, est, "localhost", mqtt_port, authority.ca_file.read_bytes()))
    give_certificate(home, authority)
    return home


def give_certificate(home: Path, authority: Authority) -> Identity:
    """A new certificate, in use."""
    certificate, key = authority.issue(DEVICE)
    store = IdentityStore(home)
    slot = store.spare_slot()
    store.clear(slot)
    store.write_key(slot, key_pem(key))
    info = certificate_info(certificate, DEVICE, datetime.now(UTC))
    candidate = store.complete(slot, pem(certificate, authority.issuing), info)
    store.promote(candidate)
    return candidate
