"""The names that a Write reads before it decides: two writes that share a name must not run concurrently.

Row locks settle the rest. Taken for a whole batch at once and in one order, these advisory locks also keep batches from
deadlocking.
"""

from collections.abc import Iterable
from hashlib import blake2b

from fleet.domain import writes as w
from fleet.domain.credential import Token
from fleet.domain.device import Device
from fleet.domain.distrust import Distrust
from fleet.domain.idempotency import Answer
from fleet.domain.manifest import serial_key
from fleet.storage.steps import INSERTS

SERIAL_LOCKS = 64


def locks_of(write: w.Write) -> list[int]:
    """The keys of the advisory locks that `write` needs."""
    return [
        int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big", signed=True) for name in names_of(write)
    ]


def names_of(write: w.Write) -> tuple[str, ...]:
    """The names that `write` reads."""
    if isinstance(write, w.RequestWrite | w.CollectRequest | w.DropRequests):
        return ("the requests",)  # counted together, and those for one device id are decided together
    if isinstance(write, w.SpendClaim | w.CountTakeover | w.QuarantineClaim | w.ReleaseClaim | w.RevokeClaim):
        return (f"claim {write.name}",)
    if isinstance(write, w.DropCredentials | w.DropAudit | w.DropEvents | w.DropAnswers):
        return ("the clean-up",)
    match write:
        case w.Insert(value=value):
            return _insert_names(value)
        case w.SetModel(model=model):
            return (f"model {model.name}",)
        case w.MoveDevice(device_id=device_id) | w.TagDevice(device_id=device_id):
            return (f"device {device_id}",)
        case w.ImportDevices(devices=devices):
            return ("the manifest", *_serial_names(each.device for each in devices))
        case w.AddCredential(credential=credential):
            return f"{credential.kind.value} {credential.holder}", f"key {credential.key_sha256.hex()}"
        case w.EndUnused(kind=kind, holder=holder, newest=newest):
            return (f"{kind} {holder}", *((f"credential {newest.hex()}",) if newest else ()))
        case w.EndCredentials(fingerprints=fingerprints) | w.RevokeSome(fingerprints=fingerprints):
            return tuple(f"credential {fingerprint.hex()}" for fingerprint in fingerprints)
        case w.RevokeCredentials(kind=kind, holder=holder) | w.HoldCredentials(kind=kind, holder=holder):
            return (f"{kind} {holder}",)
        case w.ReleaseCredentials(kind=kind, holder=holder) | w.NewestForKeyIs(kind=kind, holder=holder):
            return (f"{kind} {holder}",)
        case w.MarkUsed() | w.FirstUse() | w.StillUsable():
            return (f"credential {write.fingerprint.hex()}",)
        case w.SpendToken(token_id=token_id) | w.RevokeToken(token_id=token_id):
            return (f"token {token_id}",)
        case w.SetStation(name=name) | w.SpendStation(name=name):
            return (f"station {name}",)
        case w.DropAnchor(name=name):
            return (f"anchor {name}",)
        case w.DropDistrust(id=id_):
            return (f"distrust {id_}",)
        case w.BindIdevid(binding=binding):
            return f"anchor {binding.anchor}", f"idevid {binding.key_sha256.hex()}", f"idevid of {binding.device_id}"
        case w.TakeLease(lease=lease):
            return (f"lease {lease.name}",)
        case _:
            raise TypeError(f"what a {type(write).__name__} reads is not known")


def _insert_names(value: w.Inserted) -> tuple[str, ...]:
    if isinstance(value, Answer):
        return (f"answer {value.key} {value.actor}",)
    id_ = value.id if isinstance(value, Device | Token | Distrust) else value.name
    return (f"{INSERTS[type(value)][1].name} {id_}", *(_serial_names((value,)) if isinstance(value, Device) else ()))


def _serial_names(devices: Iterable[Device]) -> set[str]:
    """Of the hardware serials that must not be given twice: a few names for all, since an import has a thousand."""
    serials = (
        " ".join(serial_key(each.model, each.hardware_serial)).encode() for each in devices if each.hardware_serial
    )
    return {f"serials {blake2b(serial, digest_size=1).digest()[0] % SERIAL_LOCKS}" for serial in serials}
