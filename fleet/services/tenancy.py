"""What the audit says of the fleet's CAs, and what stands against a tenant's name."""

from datetime import UTC, datetime

from fleet.domain.access import Act
from fleet.domain.changes import AuditEntry, Change
from fleet.domain.credential import USABLE, Credential, CredentialKind, CredentialState
from fleet.domain.errors import Conflict
from fleet.domain.ports import Registry

PAGE = 1000
_END_OF_TIME = datetime(9000, 1, 1, tzinfo=UTC)


async def announce_tenant(registry: Registry, name: str, *, sha256: str, own_root: bool, act: Act) -> None:
    """Write down that tenant `name` gets an issuing CA, of this SHA-256 in hex: before it is there, so that the audit
    knows every one there is.

    Raises: Conflict (`name-taken`): a model has this name, and a label would name two things.
    """
    if await registry.model(name) is not None:
        text = f"There is a model {name}."
        raise Conflict("name-taken", text, "A label names a model or a tenant: choose another name.")
    detail = {"sha256": sha256, "root": "own" if own_root else "the fleet's"}
    await registry.commit(_noted("tenant.add", f"tenant {name}", act, detail))


async def announce_rollover(registry: Registry, tenant: str, *, sha256: str, root_too: bool, act: Act) -> None:
    """Write down that `tenant` ("": the fleet itself) gets a new issuing CA in place of the one of this SHA-256, and
    perhaps a new root above it.
    """
    detail = {"ends": sha256, **({"root": "new"} if root_too else {})}
    await registry.commit(_noted("ca.rollover", _ca_of(tenant), act, detail))


async def announce_forgetting(registry: Registry, tenant: str, *, sha256: str, act: Act) -> None:
    """Write down that a former issuing CA of `tenant` is to be believed no more."""
    await registry.commit(_noted("ca.forget", _ca_of(tenant), act, {"sha256": sha256}))


async def still_in_use(registry: Registry, issuer_name_der: bytes, now: datetime) -> Credential | None:
    """A certificate that opens a door and whose issuer has this name; None when there is none. Looks at every one that
    has not ended yet.
    """
    after = _ended_at(now)
    while True:
        page = await registry.expired_credentials(_END_OF_TIME, PAGE, after=after)
        for credential in page:
            # The name stands in it as it is. A false find, in some other field, would only keep a CA a while longer.
            if credential.state in USABLE and issuer_name_der in credential.der:
                return credential
        if len(page) < PAGE:
            return None
        after = page[-1]


def _ended_at(moment: datetime) -> Credential:
    """The place before every certificate that ends after `moment`."""
    last = b"\xff" * 32  # what ends at this very moment is over
    return Credential(last, "", CredentialKind.DEVICE, "", b"", moment, moment, CredentialState.ISSUED, moment, b"")


def _noted(action: str, subject: str, act: Act, detail: dict[str, str]) -> Change:
    return Change(AuditEntry(act.now, act.actor, action, subject, "ok", act.address, detail))


def _ca_of(tenant: str) -> str:
    return f"tenant {tenant}" if tenant else "fleet"
