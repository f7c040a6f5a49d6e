"""Distrust: rules that refuse certificates by what they are, without a record for each of them.

A rule names a model, the CA that signed, the kind of key, a time of issue, or several of these; all must hold. Each
decision judges the certificate presented by the rules in force, so that a rule costs the same for any number of
devices. A rule is of certificates issued until it was made: one that is issued later is outside it.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fleet.domain.credential import Credential, CredentialKind
from fleet.domain.errors import Refused
from fleet.wire.key_types import KEY_TYPES

DISTRUSTS_MAX = 64  # read and judged at every connection, some 7 µs each
SPREAD_MAX = timedelta(days=30)

KEY_MARKS = {each.name: each.spki_mark for each in KEY_TYPES if each.of_models}
"""By key type: octets that a certificate for such a key contains."""


class Distrust(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One rule."""

    id: str
    """12 hex digits."""
    issued_before: datetime
    """The time when it was made, or an earlier one."""
    created_at: datetime
    model: str = ""
    """Name of a model; "" for all."""
    issuer_key_id: bytes = msgspec.field(default=b"", name="authority")
    """Subject key identifier of the CA that signed; b"" for any."""
    key_type: str = ""
    """One of KEY_MARKS; "" for any."""
    issued_from: datetime | None = None
    refuses: bool = True
    """False: the devices are asked to renew, and still admitted."""
    may_renew: bool = True
    """Whether EST accepts the certificate for a renewal, and for nothing else."""
    spread: timedelta = timedelta(0)
    """Time from its beginning within which the devices are asked to renew."""
    matched: int = 0
    """Devices that held such a certificate when it was made."""
    created_by: str = ""
    """In the audit's words."""
    reason: str = ""

    @property
    def issuer_mark(self) -> bytes:
        return issuer_mark(self.issuer_key_id) if self.issuer_key_id else b""

    @property
    def key_mark(self) -> bytes:
        return KEY_MARKS[self.key_type] if self.key_type else b""

    def covers(self, model: str, credential: Credential) -> bool:
        """Whether it is about `credential`, of a device of `model`."""
        return (
            (not self.model or self.model == model)
            and credential.issued_at < self.issued_before
            and (self.issued_from is None or credential.issued_at >= self.issued_from)
            and self.issuer_mark in credential.der
            and self.key_mark in credential.der
            and credential.kind is CredentialKind.DEVICE
        )


def issuer_mark(key_id: bytes) -> bytes:
    """Octets that a certificate contains whose authority key identifier (RFC 5280, 4.2.1.1) is `key_id`."""
    return bytes((0x80, len(key_id))) + key_id


def refusing(rules: Iterable[Distrust], model: str, credential: Credential, *, renews: bool = False) -> Distrust | None:
    """The first of `rules` that refuses `credential`; with `renews`, for its own renewal."""
    for rule in rules:
        if rule.refuses and not (renews and rule.may_renew) and rule.covers(model, credential):
            return rule
    return None


def must_be_trusted(rules: Iterable[Distrust], model: str, credential: Credential, *, renews: bool = False) -> None:
    """Raises: Refused (`certificate-distrusted`)."""
    if (rule := refusing(rules, model, credential, renews=renews)) is not None:
        again = "Renew it by simplereenroll." if rule.may_renew else "Enroll the device again."
        raise Refused("certificate-distrusted", f"The certificate presented is distrusted ({rule.id}).", again)


def rule_text(rule: Distrust) -> str:
    """`rule` as the detail of its event, from which `rule_of` makes it again; without who made it and why."""
    return msgspec.json.encode(replace(rule, created_by="", reason="")).decode()


def rule_of(id_: str, text: str) -> Distrust:
    """The rule of an event with this subject and detail. Raises: ValueError: it is of none."""
    try:
        rule = msgspec.json.decode(text, type=Distrust)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise ValueError("no rule") from error
    if rule.id != id_ or rule.key_type not in ("", *KEY_MARKS):
        raise ValueError("another rule")
    return rule
