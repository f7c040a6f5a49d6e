"""One run of the factory station: from a board on a port to a device of the fleet, and the row that says so.

The authority decides, the ledger remembers: the CSR goes to EST in every run, and the same key gets the certificate
that it has earned already. So a run that broke off anywhere is simply run again.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NoReturn, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from firmware_tools.station.errors import LedgerError, StationError, Stopped
from firmware_tools.station.ledger import FAILED, ISSUED, PROVISIONED, Ledger, Row
from fleet.est_client.certificate_checks import check_certificate, is_root
from fleet.est_client.errors import EstError
from fleet.wire.csr import Csr
from fleet.wire.serial.dialogue.errors import DialogueError, NoAnswer
from fleet.wire.serial.dialogue.events import (
    CsrReceived,
    Event,
    Greeted,
    Proved,
    Provisioned,
    ProvisioningData,
    ProvisioningOrder,
    Restarted,
    Stored,
    Timing,
    Written,
)
from fleet.wire.serial.dialogue.station import StationDialogue
from fleet.wire.serial.messages import DeviceInfo

_STOP_CHECK_SECONDS = 0.5  # the longest that one read blocks, so that Ctrl-C is heard


class Link(Protocol):
    """An open serial port."""

    def read(self, timeout_seconds: float) -> bytes: ...
    def write(self, data: bytes) -> None: ...


class Authority(Protocol):
    """An EST server that knows us as a registration authority."""

    def cacerts(self, label: str | None = None) -> list[x509.Certificate]: ...
    def simpleenroll(self, csr_der: bytes, label: str | None = None) -> x509.Certificate: ...


@dataclass(frozen=True, slots=True)
class ProvisioningJob:
    """What is to be done with the board on the port."""

    order: ProvisioningOrder
    model: str
    """The fleet's model, the EST label; "" when the authority knows it by itself."""
    est_url: str
    mqtt_host: str
    mqtt_port: int
    port: str = ""
    """For the ledger."""
    timeout_seconds: float = 180.0
    """For the whole run."""


class ProvisioningRun:
    """One run over `link`. `say` is told each step: a word and what there is to know.

    `row` is the outcome so far, also after a failure.
    """

    def __init__(
        self,
        job: ProvisioningJob,
        link: Link,
        authority: Authority,
        *,
        ledger: Ledger | None = None,
        say: Callable[[str, str], None] = lambda step, text: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
        random: Callable[[int], bytes] = os.urandom,
        timing: Timing | None = None,
    ) -> None:
        self._job = job
        self._link = link
        self._authority = authority
        self._ledger = ledger
        self._say = say
        self._clock = clock
        self._monotonic = monotonic
        self._dialogue = StationDialogue(job.order, random, timing)
        self._started = monotonic()
        self._started_at = clock()
        self._info: DeviceInfo | None = None
        self._csr: Csr | None = None
        self._delivery: ProvisioningData | None = None
        self.row = self._row(FAILED)

    def provision(self) -> Row:
        """Do it, and return the row of the ledger that says so.

        Raises: DialogueError, EstError, StationError; a failure is in the ledger then, and the board has been told.
        """
        try:
            self._converse()
        except KeyboardInterrupt:
            self._give_up(Stopped("stopped", "Stopped by the operator.", "Run it again: it is safe at any point."))
        except (DialogueError, EstError, StationError) as error:
            self._give_up(error)
        self._write_row(self._row(PROVISIONED))
        return self.row

    def _converse(self) -> None:
        dialogue, deadline = self._dialogue, self._started + self._job.timeout_seconds
        self._say("hello", f"waiting for the board on {self._job.port}")
        dialogue.begin(self._monotonic())
        while not dialogue.ended:
            self._link.write(dialogue.data_to_send())
            now = self._monotonic()
            if now >= deadline:
                raise Stopped(
                    "timeout",
                    f"The run was not done within {self._job.timeout_seconds:.0f} s.",
                    "Run it again, with a longer --timeout on a slow line.",
                )
            timeout = min(dialogue.next_timeout() or deadline, deadline, now + _STOP_CHECK_SECONDS)
            data = self._link.read(timeout - now)
            for event in dialogue.feed(data, self._monotonic()):
                self._on_event(event)
            dialogue.tick(self._monotonic())

    def _give_up(self, error: DialogueError | EstError | StationError) -> NoReturn:
        """Tell the board, write the row, and raise `error`."""
        self._dialogue.abort(error.message)
        try:
            self._link.write(self._dialogue.data_to_send())
        except StationError as lost:
            error.add_note(f"The board could not be told: {lost.message}")
        try:
            self._write_row(self._row(FAILED, failure_code(error), error.message))
        except LedgerError as unwritten:
            error.add_note(unwritten.message)
        raise error

    def _on_event(self, event: Event) -> None:
        match event:
            case Greeted(info=info):
                self._info = info
                self._say(
                    "hello", f"board {info.hardware_serial}, {info.model}, firmware {info.firmware}, {info.state}"
                )
                if self._ledger is not None and not self._job.order.replace:
                    self._ledger.check(self._job.order.device_id, info.hardware_serial)
            case CsrReceived(csr=csr):
                self._say("csr", f"{csr.key_type} key {csr.key_sha256.hex()[:16]}")
                self._deliver(csr)
            case Written(blob=blob, size=size):
                self._say("write", f"{blob.name.lower()}, {size} octets")
            case Stored(fingerprint=fingerprint):
                self._say("install", f"certificate {fingerprint.hex()[:16]} stored")
            case Proved():
                self._say("prove", "the board holds the key")
            case Restarted(sessions=sessions):
                self._say("restart", f"the board has restarted; session {sessions}")
            case Provisioned():
                self._say("finish", f"{self._job.order.device_id} is provisioned")

    def _deliver(self, csr: Csr) -> None:
        """Have the CSR enrolled and send down what comes back; a board that has restarted gets the same again."""
        if self._csr is None or self._delivery is None or self._csr.spki_der != csr.spki_der:
            self._csr = csr
            self._delivery = self._enrolled(csr)
            certificate = self._delivery.chain[0]
            self._say("enroll", f"certificate {certificate.serial_number:x}, to {certificate.not_valid_after_utc}")
            # Before the board hears of it: a certificate that has left the authority is never forgotten.
            self._write_row(self._row(ISSUED))
        self._dialogue.deliver(self._delivery, self._monotonic())

    def _enrolled(self, csr: Csr) -> ProvisioningData:
        job = self._job
        # First the chain: nothing is issued that could not be used.
        authorities = self._authority.cacerts(job.model or None)
        certificate = self._authority.simpleenroll(csr.der, job.model or None)
        anchors = tuple(each for each in authorities if is_root(each))
        chain = check_certificate(
            certificate,
            spki_der=csr.spki_der,
            device_id=job.order.device_id,
            intermediates=[each for each in authorities if each not in anchors],
            anchors=anchors,
            now=self._clock(),
        )
        return ProvisioningData((certificate, *chain), anchors, job.est_url, job.mqtt_host, job.mqtt_port)

    def _write_row(self, row: Row) -> None:
        self.row = row
        if self._ledger is not None:
            self._ledger.append(row)

    def _row(self, event: str, code: str = "", message: str = "") -> Row:
        info, certificate = self._info, self._delivery.chain[0] if self._delivery else None
        return Row(
            event=event,
            at=_rfc3339(self._clock()),
            started_at=_rfc3339(self._started_at),
            seconds=round(self._monotonic() - self._started, 3),
            device_id=self._job.order.device_id,
            model=self._job.model,
            hardware_serial=info.hardware_serial if info else "",
            board_model=info.model if info else "",
            firmware=info.firmware if info else "",
            certificate_serial=f"{certificate.serial_number:x}" if certificate else "",
            fingerprint=certificate.fingerprint(hashes.SHA256()).hex() if certificate else "",
            key_sha256=self._csr.key_sha256.hex() if self._csr else "",
            not_after=_rfc3339(certificate.not_valid_after_utc) if certificate else "",
            station=self._job.order.station,
            port=self._job.port,
            code=code,
            message=message,
        )


def failure_code(error: DialogueError | EstError | StationError) -> str:
    """The stable word for `error` in the ledger."""
    match error:
        case NoAnswer():
            return "no-answer"
        case DialogueError():
            return error.code_name
        case EstError() | StationError():
            return error.code


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def station_name(certificates: Sequence[x509.Certificate]) -> str:
    """What a station calls itself: the common name of its certificate."""
    names = certificates[0].subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME) if certificates else []
    return str(names[0].value) if names else ""
