"""A modelled fleet: the EST server and gateway of the simulated devices, in virtual time.

It keeps the rules that decide over a device's life: a certificate is taken until it ends, a renewal until some days
later; the first use of a certificate, for a session or a renewal, supersedes the ones before; a revoked device is
refused everything; one key gets one certificate, however often it is asked for, and ends another that waits to be
used; who comes too many at once, or too often in a day, is asked to come later. No bytes, no TLS.
tests/hw_bench/test_fleet_contract.py holds this model and a real fleet to them.
"""

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from device_agent.core import Setback
from device_agent.store.identity_store import CertificateInfo

BACKDATED = timedelta(minutes=5)
SERVER_LIFE, SERVER_RENEWED_AFTER = timedelta(days=90), timedelta(days=60)
OLD_ROOT, NEW_ROOT = "old root", "new root"


@dataclass(frozen=True, slots=True)
class Outage:
    """Nothing answers from `begin` to `end`, seconds since the start; `est_only`: the gateway does."""

    begin: float
    end: float
    est_only: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """What the fleet is set to, and what happens to it. Times in seconds since the start."""

    life: timedelta = timedelta(days=30)
    grace: timedelta = timedelta(days=60)
    """For how long after its end a certificate can still be renewed."""
    certificates_per_day: int = 24
    """Of a device; in a lifetime, if that is shorter."""
    issued_per_minute_max: int = 1_000_000
    retry_after_seconds: float = 120.0
    outages: tuple[Outage, ...] = ()
    new_root_at: float = float("inf")
    """From here on a renewal brings the new root, too."""
    old_root_ends_at: float = float("inf")
    """From here on servers are below the new root alone; before, below both."""


@dataclass(slots=True)
class Account:
    """One device at the fleet."""

    revoked: bool = False
    issued: dict[str, CertificateInfo] = field(default_factory=dict)
    """By key; each certificate once."""
    used: set[str] = field(default_factory=set)
    """Fingerprints."""
    superseded: set[str] = field(default_factory=set)
    """Fingerprints."""
    budget_full_at: float = 0.0
    """When it may again get as many certificates at once as in a day."""

    def known(self, fingerprint: str) -> CertificateInfo | None:
        return next((one for one in self.issued.values() if one.fingerprint == fingerprint), None)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a renewal was not granted."""

    code: str
    """The EST server's."""
    message: str
    refused: bool = False
    ended: bool = False
    retry_after_seconds: float = 0.0


class Authority:
    """`start`: the true time at second 0. Seconds are the world's."""

    def __init__(self, rules: Rules, start: datetime) -> None:
        self.rules = rules
        self.refused: Counter[str] = Counter()
        """CONNECTs that were refused, by device."""
        self.asked: Counter[str] = Counter()
        """Requests for renewal information, by device."""
        self._start = start
        self._accounts: defaultdict[str, Account] = defaultdict(Account)
        self._minute = (-1, 0)
        self.issued_at: list[float] = []

    def time(self, at: float) -> datetime:
        """The true time."""
        return self._start + timedelta(seconds=at)

    def answers(self, at: float, *, est: bool) -> bool:
        """Whether the EST server, or the gateway, can be reached."""
        return not any(one.begin <= at < one.end and (est or not one.est_only) for one in self.rules.outages)

    def account(self, device: str) -> Account:
        return self._accounts[device]

    def certificate_of_server(self, at: float) -> tuple[datetime, datetime]:
        """Validity of the certificate that the servers show now: renewed long before its end."""
        period = SERVER_RENEWED_AFTER.total_seconds()
        begin = self.time(at // period * period) - BACKDATED
        return begin, begin + SERVER_LIFE

    def roots(self, at: float) -> frozenset[str]:
        """The roots that the chain of the servers leads to."""
        if at >= self.rules.old_root_ends_at:
            return frozenset((NEW_ROOT,))
        return frozenset((OLD_ROOT, NEW_ROOT)) if at >= self.rules.new_root_at else frozenset((OLD_ROOT,))

    def issue(self, device: str, key: bytes, at: float) -> CertificateInfo:
        """The certificate for `key`: the same again, if there is one."""
        account, name = self._accounts[device], hashlib.sha256(key).hexdigest()
        if name not in account.issued:
            begin = self.time(at) - BACKDATED
            number = f"{len(self.issued_at):x}"
            account.issued[name] = CertificateInfo(
                device, number, hashlib.sha256(f"{device} {number}".encode()).hexdigest(), "CN=Issuing CA", begin,
                begin + self.rules.life, None,
            )  # fmt: skip
            self.issued_at.append(at)
            account.budget_full_at = self._budget_full_at(account, at)
        return account.issued[name]

    def _budget_full_at(self, account: Account, at: float) -> float:
        """After one more certificate."""
        return max(at, account.budget_full_at) + self._period / self.rules.certificates_per_day

    @property
    def _period(self) -> float:
        return min(self.rules.life, timedelta(days=1)).total_seconds()

    def renew(self, device: str, fingerprint: str, key: bytes, at: float) -> CertificateInfo | Refusal:
        """A certificate for `key`, asked for with the certificate `fingerprint`."""
        account = self._accounts[device]
        present = account.known(fingerprint)
        code = "certificate-unknown"
        if present is not None:
            code = self._code(account, present, at, self.rules.grace)
        if code:
            return Refusal(code, "The server refuses to renew this certificate.", refused=True, ended=True)
        late = self._budget_full_at(account, at) - at - self._period
        if late > 0 and hashlib.sha256(key).hexdigest() not in account.issued:
            return Refusal("certificate-budget", "The device has had its certificates.", retry_after_seconds=late)
        minute, count = int(at // 60), self._minute[1]
        if minute != self._minute[0]:
            count = 0
        if count >= self.rules.issued_per_minute_max:
            return Refusal(
                "too-many-requests", "The server is busy.", retry_after_seconds=self.rules.retry_after_seconds
            )
        self._minute = (minute, count + 1)
        self.begins(device, fingerprint)
        issued = self.issue(device, key, at)
        waiting = {one.fingerprint for one in account.issued.values()} - account.used
        account.superseded |= waiting - {issued.fingerprint}
        return issued

    def _code(self, account: Account, present: CertificateInfo, at: float, grace: timedelta = timedelta()) -> str:
        """Why this certificate is not good for anything now; "" if it is."""
        if account.revoked:
            return "device-revoked"
        if present.fingerprint in account.superseded:
            return "certificate-superseded"
        return "certificate-expired" if self.time(at) >= present.not_after + grace else ""

    def setback(self, device: str, fingerprint: str, at: float) -> Setback | None:
        """Why a session with this certificate ends, or does not begin; None: it may."""
        if not self.answers(at, est=False):
            return Setback.NETWORK
        account = self._accounts[device]
        present = account.known(fingerprint)
        if account.revoked or present is None:
            return Setback.ENDED
        if fingerprint in account.superseded:
            return Setback.REFUSED
        return Setback.REFUSED if self.time(at) >= present.not_after else None

    def begins(self, device: str, fingerprint: str) -> None:
        """This certificate is used, for a session or a renewal: the ones issued before it are superseded."""
        account = self._accounts[device]
        account.used.add(fingerprint)
        for one in account.issued.values():
            if one.fingerprint == fingerprint:
                return
            account.superseded.add(one.fingerprint)
