"""Audit rows for the fleet's CAs, and the certificates that a former CA still has in use."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

from fleet.domain.access import Act
from fleet.domain.changes import Change, made_by
from fleet.domain.credential import USABLE, Credential
from fleet.domain.errors import Conflict
from fleet.domain.ports import Registry
from fleet.services.revocation import end_certificates

PAGE = 1000
_END_OF_TIME = datetime(9000, 1, 1, tzinfo=UTC)
_LAST_FINGERPRINT = b"\xff" * 32


async def announce_tenant(registry: Registry, name: str, *, sha256: str, own_root: bool, act: Act) -> None:
    """Record that tenant `name` gets an issuing CA, of this SHA-256 in hex: before it exists, so that the audit has
    every one.

    Raises: Conflict (`name-taken`): a model has this name, and a label would name two things.
    """
    if await registry.model(name) is not None:
        text = f"There is a model {name}."
        raise Conflict("name-taken", text, "A label names a model or a tenant: choose another name.")
    detail = {"sha256": sha256, "root": "own" if own_root else "the fleet's"}
    await registry.commit(Change(made_by(act, "tenant.add", f"tenant {name}", **detail)))


async def announce_rollover(registry: Registry, tenant: str, *, sha256: str, root: str = "", act: Act) -> None:
    """Record that `tenant` ("": the fleet itself) gets a new issuing CA in place of the one of this SHA-256, and a new
    root in place of that of the SHA-256 `root`, if given.
    """
    detail = {"ends": sha256, **({"root": "new", "ends_root": root} if root else {})}
    await registry.commit(Change(made_by(act, "ca.rollover", _ca_of(tenant), **detail)))


async def announce_import(registry: Registry, tenant: str, *, ends: str, sha256: str, root: str, act: Act) -> None:
    """Record that `tenant` gets an issuing CA that was signed elsewhere, of this SHA-256 and below the root of the
    SHA-256 `root`, in place of the one of the SHA-256 `ends`.
    """
    detail = {"ends": ends, "sha256": sha256, "root": root}
    await registry.commit(Change(made_by(act, "ca.import", _ca_of(tenant), **detail)))


async def announce_signing(registry: Registry, action: str, *, name: str, sha256: str, act: Act) -> None:
    """Record that the root signs the CA called `name` (`ca.sign`, `ca.cross-sign`) or lists it in its CRL
    (`ca.revoke`).
    """
    await registry.commit(Change(made_by(act, action, _ca_of(""), name=name, sha256=sha256)))


async def announce_forgetting(registry: Registry, tenant: str, *, sha256: str, act: Act) -> None:
    """Record that a former issuing CA of `tenant` is no longer trusted."""
    await registry.commit(Change(made_by(act, "ca.forget", _ca_of(tenant), sha256=sha256)))


async def still_in_use(registry: Registry, issuer_name_der: bytes, now: datetime) -> Credential | None:
    """A usable certificate whose issuer has this name; None when there is none. Reads every unexpired certificate."""
    async for credential in _in_use(registry, issuer_name_der, now):
        return credential
    return None


async def end_what_is_in_use(registry: Registry, issuer_name_der: bytes, *, sha256: str, act: Act) -> int:
    """End every usable certificate whose issuer, of this SHA-256 in hex, has this name, with its sessions on every
    node. Returns how many.
    """
    holders = {c.fingerprint: c.holder async for c in _in_use(registry, issuer_name_der, act.now)}
    await end_certificates(registry, holders, act=act, issuer=sha256)
    return len(holders)


async def _in_use(registry: Registry, issuer_name_der: bytes, now: datetime) -> AsyncIterator[Credential]:
    after = (now, _LAST_FINGERPRINT)  # what ends at this very moment is over
    while True:
        page = await registry.credentials_by_expiry(_END_OF_TIME, PAGE, after=after)
        for credential in page:
            # The DER of the name occurs as it is: a sequence with its length, which no device's own name has.
            if credential.state in USABLE and issuer_name_der in credential.der:
                yield credential
        if len(page) < PAGE:
            return
        after = (page[-1].not_after, page[-1].fingerprint)


def _ca_of(tenant: str) -> str:
    return f"tenant {tenant}" if tenant else "fleet"
