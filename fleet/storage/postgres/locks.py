"""The names that a Write reads before it decides: two writes that share a name must not run concurrently.

Row locks settle the rest. Taken for a whole batch at once and in one order, these advisory locks also keep batches from
deadlocking.
"""

from hashlib import blake2b
from typing import assert_never

from fleet.domain.writes import (
    AddAnchor,
    AddAnswer,
    AddClaim,
    AddCredential,
    AddDevice,
    AddModel,
    AddOperator,
    AddStation,
    AddToken,
    BindIdevid,
    ClaimWrite,
    DropAnchor,
    DropAnswers,
    EndCredentials,
    EndUnused,
    ImportDevices,
    MarkUsed,
    MoveDevice,
    RequestWrite,
    RetentionWrite,
    RevokeCredentials,
    RevokeToken,
    SetModel,
    SetStation,
    SpendStation,
    SpendToken,
    TagDevice,
    TakeLease,
    Write,
)


def locks_of(write: Write) -> list[int]:
    """The keys of the advisory locks that `write` needs."""
    return [
        int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big", signed=True) for name in names_of(write)
    ]


def names_of(write: Write) -> tuple[str, ...]:
    """The names that `write` reads."""
    if isinstance(write, RequestWrite):
        return ("the requests",)  # counted together, and those for one device id are decided together
    if isinstance(write, ClaimWrite):
        return (f"claim {write.claim.name if isinstance(write, AddClaim) else write.name}",)
    if isinstance(write, RetentionWrite | DropAnswers):
        return ("the clean-up",)
    match write:
        case AddModel(model=model) | SetModel(model=model):
            return (f"model {model.name}",)
        case AddDevice(device=device):
            return (f"device {device.id}",)
        case MoveDevice(device_id=device_id) | TagDevice(device_id=device_id):
            return (f"device {device_id}",)
        case ImportDevices():
            return ("the manifest",)
        case AddCredential(credential=credential):
            return f"{credential.kind.value} {credential.holder}", f"key {credential.key_sha256.hex()}"
        case EndUnused(kind=kind, holder=holder, newest=newest):
            return (f"{kind} {holder}", *((f"credential {newest.hex()}",) if newest else ()))
        case EndCredentials(fingerprints=fingerprints):
            return tuple(f"credential {fingerprint.hex()}" for fingerprint in fingerprints)
        case RevokeCredentials(kind=kind, holder=holder):
            return (f"{kind} {holder}",)
        case MarkUsed(fingerprint=fingerprint):
            return (f"credential {fingerprint.hex()}",)
        case AddToken(token=token):
            return (f"token {token.id}",)
        case SpendToken(token_id=token_id) | RevokeToken(token_id=token_id):
            return (f"token {token_id}",)
        case AddStation(station=station):
            return (f"station {station.name}",)
        case SetStation(name=name) | SpendStation(name=name):
            return (f"station {name}",)
        case AddAnchor(anchor=anchor):
            return (f"anchor {anchor.name}",)
        case DropAnchor(name=name):
            return (f"anchor {name}",)
        case BindIdevid(binding=binding):
            return f"anchor {binding.anchor}", f"idevid {binding.key_sha256.hex()}", f"idevid of {binding.device_id}"
        case AddOperator(operator=operator):
            return (f"operator {operator.name}",)
        case AddAnswer(answer=answer):
            return (f"answer {answer.key} {answer.actor}",)
        case TakeLease(lease=lease):
            return (f"lease {lease.name}",)
        case _:
            assert_never(write)
