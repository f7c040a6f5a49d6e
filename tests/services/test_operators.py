"""Operators: recorded with their certificate or not at all, identified by it, and put out."""

import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec.structs import replace

from fleet.ca.authority import create_issuing, create_operators, create_root
from fleet.ca.issuer import OPERATORS, LocalIssuer
from fleet.ca.keys import generate_key
from fleet.domain.access import FLEET_WIDE, PERMISSIONS, Act, Operator, Permission, Role, demand, demand_model
from fleet.domain.changes import Event, EventKind
from fleet.domain.credential import CredentialKind, CredentialState
from fleet.domain.device import Model
from fleet.domain.errors import FleetError, Refused, Unauthenticated
from fleet.domain.peer import Peer
from fleet.services import inventory
from fleet.services.identity import identify, identify_operator
from fleet.services.operators import NewOperator, enroll_operator, revoke_operator
from fleet.storage.sqlite.registry import SqliteRegistry

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ACT = Act("operator alice", NOW, "192.0.2.1")


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[SqliteRegistry]:
    opened = await SqliteRegistry.open(tmp_path / "registry.db")
    await inventory.add_model(opened, Model("cam"), act=ACT)
    yield opened
    await opened.close()


@pytest.fixture(scope="module")
def issuer() -> LocalIssuer:
    return LocalIssuer(*create_operators("test", NOW), OPERATORS)


def spki() -> bytes:
    return generate_key().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


async def test_enrolled_whole(registry: SqliteRegistry, issuer: LocalIssuer) -> None:
    key = spki()
    made = await enroll_operator(registry, issuer, NewOperator("bob", Role.VIEWER, ("cam", "cam"), key), act=ACT)
    assert (made.kind, made.holder, made.state) == (CredentialKind.OPERATOR, "bob", CredentialState.ISSUED)
    assert made.key_sha256 == hashlib.sha256(key).digest()
    assert await registry.operator("bob") == Operator("bob", Role.VIEWER, NOW, ("cam",))
    assert await registry.credentials("bob") == [made]
    (row,) = await registry.audit(after=await registry.last_audit() - 1)
    assert (row.entry.actor, row.entry.action, row.entry.address) == ("operator alice", "operator.add", "192.0.2.1")
    assert row.entry.detail == {"role": "viewer", "models": "cam", "serial": made.serial}
    (event,) = await registry.events(after=await registry.last_event() - 1)
    assert replace(event, seq=0) == Event(EventKind.CREDENTIAL_ISSUED, "bob", made.fingerprint.hex())


@pytest.mark.parametrize(
    ("name", "role", "models", "days", "code"),
    [
        ("", Role.ADMIN, (), 1, "bad-name"),
        ("a/b", Role.ADMIN, (), 1, "bad-name"),
        ("bob", Role.FACTORY, (), 1, "bad-operator-models"),
        ("bob", Role.ADMIN, ("cam",) * 65, 1, "bad-operator-models"),
        ("bob", Role.ADMIN, ("pump",), 1, "no-such-model"),
        ("bob", Role.ADMIN, (), 0, "bad-lifetime"),
        ("alice", Role.ADMIN, (), 1, "operator-exists"),
    ],
)
async def test_refused(
    registry: SqliteRegistry, issuer: LocalIssuer, name: str, role: Role, models: tuple[str, ...], days: int, code: str
) -> None:
    await enroll_operator(registry, issuer, NewOperator("alice", Role.ADMIN, (), spki()), act=ACT)
    before = await registry.last_audit()
    with pytest.raises(FleetError) as caught:
        new = NewOperator(name, role, models, spki(), timedelta(days=days))
        await enroll_operator(registry, issuer, new, act=ACT)
    assert caught.value.code == code
    assert await registry.last_audit() == before


async def test_the_devices_ca_enrolls_no_operator(registry: SqliteRegistry) -> None:
    root = create_root("test", NOW)
    devices = LocalIssuer(*create_issuing("test", *root, NOW))
    with pytest.raises(Refused, match="signs nothing for operator bob"):
        await enroll_operator(registry, devices, NewOperator("bob", Role.ADMIN, (), spki()), act=ACT)
    assert await registry.operators() == []


async def test_identified_as_an_operator_and_as_nothing_else(registry: SqliteRegistry, issuer: LocalIssuer) -> None:
    made = await enroll_operator(registry, issuer, NewOperator("bob", Role.ADMIN, (), spki()), act=ACT)
    peer = Peer("192.0.2.9", made.der, (made.der,), made.fingerprint)
    assert await identify_operator(registry, peer, NOW) == (Operator("bob", Role.ADMIN, NOW), made)
    with pytest.raises(Unauthenticated, match="not known"):
        await identify(registry, peer, NOW)
    with pytest.raises(Refused, match="not valid"):
        await identify_operator(registry, peer, made.not_after)
    await revoke_operator(registry, "bob", act=ACT, reason="left")
    with pytest.raises(Refused, match="revoked"):
        await identify_operator(registry, peer, NOW)
    (event,) = await registry.events(after=await registry.last_event() - 1)
    assert replace(event, seq=0) == Event(EventKind.CREDENTIAL_ENDED, "bob", made.fingerprint.hex())


@pytest.mark.parametrize("name", ["bob", "nobody"])
async def test_revoked_once(registry: SqliteRegistry, issuer: LocalIssuer, name: str) -> None:
    await enroll_operator(registry, issuer, NewOperator("bob", Role.ADMIN, (), spki()), act=ACT)
    await revoke_operator(registry, "bob", act=ACT)
    with pytest.raises(FleetError) as caught:
        await revoke_operator(registry, name, act=ACT)
    assert caught.value.code == ("operator-revoked" if name == "bob" else "no-such-operator")


@pytest.mark.parametrize("role", Role)
def test_a_role_has_what_it_is_given_and_nothing_else(role: Role) -> None:
    free, held = Operator("a", role, NOW), Operator("b", role, NOW, ("cam",))
    for permission in Permission:
        for operator in (free, held):
            may = permission in PERMISSIONS[role] and not (operator.models and permission in FLEET_WIDE)
            if may:
                demand(operator, permission)
            else:
                with pytest.raises(Refused):
                    demand(operator, permission)
    demand_model(free, "pump")
    demand_model(held, "cam")
    with pytest.raises(Refused, match="models other than"):
        demand_model(held, "pump")


def test_a_viewer_changes_nothing() -> None:
    assert all(permission.endswith(".read") for permission in PERMISSIONS[Role.VIEWER])
