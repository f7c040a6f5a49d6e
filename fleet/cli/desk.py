"""What a command works at: a home's own registry, or a served fleet over the admin API. Each command is written once.

@fleet_option
def list_models(desk: Desk, output: str) -> None:
    print_rows(COLUMNS, [... for model in desk.models()], output)
"""

import functools
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click
from click.core import ParameterSource

from fleet.ca.head_signer import HeadKey
from fleet.ca.view import CaCertificate
from fleet.cli.issued import Issued, Newest
from fleet.domain.access import Operator, Role
from fleet.domain.approval import ApprovalRequest, RequestFilter
from fleet.domain.audit_proof import Proof
from fleet.domain.changes import AuditRow
from fleet.domain.claim import Claim
from fleet.domain.credential import CredentialState, Station, Token
from fleet.domain.device import Device, DeviceFilter, Model, Place
from fleet.domain.idevid import Anchor
from fleet.domain.ports import AuditReader
from fleet.domain.tags import Retag
from fleet.services.audit_search import RowFilter
from fleet.services.bulk import Tally
from fleet.services.forecast import Forecast
from fleet.services.importing import Counts, Numbered, RowRefused
from fleet.services.renewal import Progress
from fleet.services.retention_status import RetentionStatus

_Command = TypeVar("_Command", bound=Callable[..., object])

Taking = Callable[[Sequence[Numbered]], Awaitable[list[RowRefused]]]
"""Takes some rows, durably when it returns, and counts them; who was refused. Raises: FleetError."""

MOVES = ("suspend", "resume", "revoke", "retire")


@dataclass(frozen=True, slots=True)
class Held:
    """A certificate of a device, in short."""

    serial: str
    state: CredentialState
    not_before: datetime
    not_after: datetime
    sha256: bytes
    """Of its DER."""


@dataclass(frozen=True, slots=True)
class Order:
    """An act on every device of a filter."""

    text: str
    """The filter as it was written."""
    where: DeviceFilter
    """And as it was understood."""
    act: str
    """One of MOVES, or "tag"."""
    retag: Retag | None
    """With "tag"."""
    reason: str


@dataclass(frozen=True, slots=True)
class Went:
    """How an act on many devices went."""

    bulk: str
    """What ties its audit rows together."""
    tally: Tally
    is_interrupted: bool


class Desk(Protocol):
    """Everything that can be done at a home and from afar alike. Each call raises FleetError, with the same codes."""

    def models(self) -> list[Model]: ...
    def model(self, name: str) -> Model: ...
    def add_model(self, model: Model) -> None: ...
    def change_model(self, name: str, change: Callable[[Model], Model]) -> Model:
        """The model with `change` made to it; Conflict when somebody else changed it meanwhile."""
        ...

    def renewal_progress(self, model: str) -> Progress:
        """How far the model's renewal campaign has come."""
        ...

    def devices(self, where: DeviceFilter, after: Place, limit: int) -> list[Device]: ...
    def device(self, id_text: str) -> tuple[Device, list[Held]]:
        """The device with its certificates, oldest first."""
        ...

    def add_device(self, id_text: str, model: str, hardware_serial: str, labels: Retag | None = None) -> Device:
        """With the tags and groups that `labels` set, if there are any."""
        ...

    def tag_device(self, id_text: str, retag: Retag, reason: str) -> Device: ...
    def move_device(self, verb: str, id_text: str, reason: str) -> Device:
        """`verb` is one of MOVES."""
        ...

    def all_devices(self, where: DeviceFilter) -> list[Device]: ...
    def count_devices(self, order: Order) -> int:
        """How many `order` is for."""
        ...

    def act_on_many(self, order: Order, count: int, heard: Callable[[Tally], None]) -> Went:
        """Do it to the `count` devices that it is for, and tell `heard` how far it has come. SIGINT and SIGTERM stop it
        where nothing is left half done.
        """
        ...

    def stations(self) -> list[tuple[Station, Newest | None]]: ...
    def add_station(
        self, name: str, models: tuple[str, ...], csr_der: bytes, lifetime: timedelta, quota: int
    ) -> Issued:
        """With a certificate for the key that the request was made with."""
        ...

    def set_station_quota(self, name: str, quota: int) -> Station: ...
    def revoke_station(self, name: str, reason: str) -> None: ...
    def claims(self) -> list[Claim]: ...
    def claim(self, name: str) -> tuple[Claim, list[Held]]:
        """The claim with its certificate."""
        ...

    def add_claim(self, name: str, model: str, quota: int, csr_der: bytes, lifetime: timedelta) -> tuple[Claim, Issued]:
        """With a certificate for the key that the request was made with."""
        ...

    def move_claim(self, verb: str, name: str, reason: str) -> None:
        """`verb` is "revoke", "quarantine" or "release"."""
        ...

    def anchors(self) -> list[Anchor]: ...
    def add_anchor(self, name: str, models: tuple[str, ...], data: bytes) -> Anchor:
        """`data`: the maker's CA, PEM or DER."""
        ...

    def remove_anchor(self, name: str, reason: str) -> None: ...
    def operators(self) -> list[tuple[Operator, Newest | None]]: ...
    def operator(self, name: str) -> tuple[Operator, Newest | None]: ...
    def add_operator(
        self, name: str, role: Role, models: tuple[str, ...], csr_der: bytes, lifetime: timedelta
    ) -> Issued: ...
    def revoke_operator(self, name: str, reason: str) -> None: ...
    def authorities(self) -> list[CaCertificate]:
        """The fleet's CAs, the root first."""
        ...

    def broken_tenants(self) -> dict[str, str]:
        """Tenants whose CA cannot be read, each with the reason, as far as this place can see."""
        ...

    def forecast(self, weeks: int, cliff_percent: float) -> Forecast:
        """What ends in the next `weeks`."""
        ...

    def retention(self) -> RetentionStatus:
        """What the registry keeps, and for how long."""
        ...

    def prove(self, what: int | str) -> Proof:
        """That a row is in the audit: by its number, or the one that recorded the issue of the certificate with this
        serial number, lower-case hex.
        """
        ...

    def tokens(self) -> list[Token]: ...
    def create_token(self, device: str | None, model: str | None, uses: int, ttl: timedelta) -> tuple[Token, str]:
        """The token, and its text, which is told here and never again."""
        ...

    def revoke_token(self, token_id: str) -> None: ...
    def requests(self, where: RequestFilter, after: str, limit: int) -> list[ApprovalRequest]:
        """By id, from behind `after`."""
        ...

    def request(self, request_id: str) -> ApprovalRequest: ...
    def decide_request(self, verb: str, request_id: str, reason: str) -> ApprovalRequest:
        """`verb` is "approve" or "deny"."""
        ...

    def audit(self, where: RowFilter, after: int | None, limit: int) -> list[AuditRow]:
        """At most `limit` rows that `where` means behind `after`; without it, the newest ones; in order."""
        ...

    def audit_reader(self) -> AbstractAsyncContextManager[AuditReader]:
        """The audit, with its signed heads and the hashes that are kept."""
        ...

    def audit_keys(self) -> list[HeadKey] | None:
        """Keys that its heads are signed by; None where this place cannot vouch for any."""
        ...

    def importing(self, bulk: str, counts: Counts) -> AbstractAsyncContextManager[Taking]:
        """What takes the rows of a manifest and tells who was refused; `bulk` ties the audit rows together."""
        ...

    def status(self) -> dict[str, Any]:
        """What is in the registry; from afar, the server's counters too."""
        ...


_FILE = click.Path(path_type=Path, dir_okay=False)
_OPTIONS: tuple[tuple[str, click.ParamType[Any] | None, str], ...] = (
    ("home", click.Path(path_type=Path), "The fleet's home folder, made by `fleet init`."),
    ("url", None, "Or the admin API of a served fleet: https://HOST:PORT."),
    ("cert", _FILE, "Your certificate, for --url: PEM."),
    ("key", _FILE, "Its key, unless it is beside it as NAME.key, or in the same file."),
    ("ca", _FILE, "The root by which to know the server; without, the system's."),
)


def fleet_option(command: _Command) -> Callable[..., object]:
    """Give a command `--home`, or `--url` with `--cert`, `--key` and `--ca`; it gets a Desk as `desk`."""
    return _with_options(command, _desk)


def fleet_or_copy_option(command: _Command) -> Callable[..., object]:
    """The same beside an option that gets the command a `copy` to work on: with that, `desk` is None."""

    def desk_unless_copied(*given: Any, copy: Path | None) -> Desk | None:
        if copy is None:
            return _desk(*given)
        context = click.get_current_context()
        for name in ("url", "cert", "key", "ca"):
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--{name} is for a served fleet, and a copy is read here.")
        return None

    return _with_options(command, desk_unless_copied, passing=("copy",))


def _with_options(
    command: Callable[..., object], desk_of: Callable[..., Desk | None], passing: tuple[str, ...] = ()
) -> Callable[..., object]:
    @functools.wraps(command)
    def with_desk(
        home: Path | None, url: str | None, cert: Path | None, key: Path | None, ca: Path | None, **given: Any
    ) -> object:
        desk = desk_of(home, url, cert, key, ca, **{name: given[name] for name in passing})
        return command(desk=desk, **given)

    wrapped: Callable[..., object] = with_desk
    for name, kind, help_text in reversed(_OPTIONS):
        wrapped = click.option(
            f"--{name}", type=kind, envvar=f"FLEET_{name.upper()}", show_envvar=True, help=help_text
        )(wrapped)
    return wrapped


def _desk(home: Path | None, url: str | None, cert: Path | None, key: Path | None, ca: Path | None) -> Desk:
    if home is not None and url is not None:
        # What is said on the command line counts before what stands in the environment.
        context = click.get_current_context()
        said = {name for name in ("home", "url") if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
        if len(said) != 1:
            raise click.UsageError("Give --home (or FLEET_HOME) or --url (or FLEET_URL), and not both.")
        home, url = (home, None) if "home" in said else (None, url)
    if home is not None:
        from fleet.cli.local_desk import LocalDesk

        return LocalDesk(home)
    if url is None:
        raise click.UsageError("Give --home (or FLEET_HOME), or --url (or FLEET_URL) with --cert.")
    if cert is None:
        raise click.UsageError("--url needs your certificate: --cert (or FLEET_CERT).")
    from fleet.cli.remote_desk import RemoteDesk

    return RemoteDesk(url, cert, key, ca)
