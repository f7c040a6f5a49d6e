"""One run of the factory station: the dialogue with a board, its enrollment over EST, and the ledger.

Every run sends the CSR to the EST server, which returns the existing certificate for a key that has one. So an
interrupted run can always be repeated.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NoReturn, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from firmware_tools.station.errors import LedgerError, StationError, Stopped
from firmware_tools.station.ledger import FAILED, ISSUED, PROVISIONED, Ledger, Row
from fleet.est_client.certificate_checks import check_certificate, current_roots
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

_STOP_CHECK_SECONDS = 0.5  # the longest blocking read: Ctrl-C is noticed in between


class Link(Protocol):
    """An open serial port."""

    def read(self, timeout_seconds: float) -> bytes: ...
    def write(self, data: bytes) -> None: ...


class EstService(Protocol):
    """An EST server where this station is a registration authority."""

    def cacerts(self, label: str | None = None) -> list[x509.Certificate]: ...
    def simpleenroll(self, csr_der: bytes, label: str | None = None) -> x509.Certificate: ...


@dataclass(frozen=True, slots=True)
class ProvisioningJob:
    """The order for the board on a port, and what it is to be given."""

    order: ProvisioningOrder
    model: str
    """The fleet's model, used as EST label; "" if the server can derive it."""
    est_url: str
    mqtt_host: str
    mqtt_port: int
    port: str = ""
    """For the ledger."""
    timeout_seconds: float = 180.0
    """For the whole run."""
    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True, slots=True)
class Environment:
    """Time and randomness of a run."""

    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    monotonic: Callable[[], float] = time.monotonic
    random: Callable[[int], bytes] = os.urandom


SYSTEM = Environment()


class ProvisioningRun:
    """One run over `link`. `report` is called with each step: a word and its details.

    `row` is the ledger's row so far, also after a failure.
    """

    def __init__(
        self,
        job: ProvisioningJob,
        link: Link,
        est: EstService,
        *,
        ledger: Ledger | None = None,
        report: Callable[[str, str], None] = lambda step, text: None,
        environment: Environment = SYSTEM,
    ) -> None:
        self._job = job
        self._link = link
        self._est = est
        self._ledger = ledger
        self._report = report
        self._clock = environment.clock
        self._monotonic = environment.monotonic
        self._dialogue = StationDialogue(job.order, environment.random, job.timing)
        self._started = self._monotonic()
        self._started_at = self._clock()
        self._info: DeviceInfo | None = None
        self._csr: Csr | None = None
        self._data: ProvisioningData | None = None
        self.row = self._row(FAILED)

    def provision(self) -> Row:
        """Provision the board, and return the ledger's row.

        Raises: DialogueError, EstError, StationError; the failure has then been written to the ledger and sent to the
        board.
        """
        try:
            self._converse()
        except KeyboardInterrupt:
            self._give_up(Stopped("stopped", "Stopped by the operator.", "Run it again: a run can always be repeated."))
        except (DialogueError, EstError, StationError) as error:
            self._give_up(error)
        self._write_row(self._row(PROVISIONED))
        return self.row

    def _converse(self) -> None:
        dialogue, deadline = self._dialogue, self._started + self._job.timeout_seconds
        self._report("hello", f"waiting for the board on {self._job.port}")
        dialogue.begin(self._monotonic())
        while not dialogue.ended:
            self._link.write(dialogue.data_to_send())
            now = self._monotonic()
            if now >= deadline:
                raise Stopped(
                    "timeout",
                    f"The run did not finish within {self._job.timeout_seconds:.0f} s.",
                    "Run it again, with a longer --timeout on a slow line.",
                )
            timeout = min(dialogue.next_timeout() or deadline, deadline, now + _STOP_CHECK_SECONDS)
            data = self._link.read(timeout - now)
            for event in dialogue.feed(data, self._monotonic()):
                self._on_event(event)
            dialogue.tick(self._monotonic())

    def _give_up(self, error: DialogueError | EstError | StationError) -> NoReturn:
        """Send an Abort, write the row, and raise `error`."""
        self._dialogue.abort(error.message)
        try:
            self._link.write(self._dialogue.data_to_send())
        except StationError as lost:
            error.add_note(f"The board could not be notified: {lost.message}")
        try:
            self._write_row(self._row(FAILED, failure_code(error), error.message))
        except LedgerError as unwritten:
            error.add_note(unwritten.message)
        raise error

    def _on_event(self, event: Event) -> None:
        match event:
            case Greeted(info=info):
                self._info = info
                self._report(
                    "hello", f"board {info.hardware_serial}, {info.model}, firmware {info.firmware}, {info.state}"
                )
                if self._ledger is not None and not self._job.order.replace:
                    self._ledger.check(self._job.order.device_id, info.hardware_serial)
            case CsrReceived(csr=csr):
                self._report("csr", f"{csr.key_type} key {csr.key_sha256.hex()[:16]}")
                self._deliver(csr)
            case Written(blob=blob, size=size):
                self._report("write", f"{blob.name.lower()}, {size} octets")
            case Stored(fingerprint=fingerprint):
                self._report("install", f"certificate {fingerprint.hex()[:16]} stored")
            case Proved():
                self._report("prove", "the board has proved possession of its key")
            case Restarted(sessions=sessions):
                self._report("restart", f"the board has restarted; session {sessions}")
            case Provisioned():
                self._report("finish", f"{self._job.order.device_id} is provisioned")

    def _deliver(self, csr: Csr) -> None:
        """Enroll the CSR and send the certificate to the board. After a restart the board gets the same one."""
        if self._csr is None or self._data is None or self._csr.spki_der != csr.spki_der:
            self._csr = csr
            self._data = self._enrolled(csr)
            certificate = self._data.chain[0]
            self._report("enroll", f"certificate {certificate.serial_number:x}, to {certificate.not_valid_after_utc}")
            # Before the board gets it: every certificate that was issued is in the ledger.
            self._write_row(self._row(ISSUED))
        self._dialogue.deliver(self._data, self._monotonic())

    def _enrolled(self, csr: Csr) -> ProvisioningData:
        job = self._job
        # First the chain: no certificate is issued that could not be used.
        authorities = self._est.cacerts(job.model or None)
        certificate = self._est.simpleenroll(csr.der, job.model or None)
        anchors = current_roots(authorities)  # a root that was rolled over is for devices that are out there
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
        info, certificate = self._info, self._data.chain[0] if self._data else None
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
    """The stable code of `error` in the ledger."""
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
    """A station's name: the common name of its certificate."""
    names = certificates[0].subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME) if certificates else []
    return str(names[0].value) if names else ""
