"""`fleet claim`: certificates that a batch of devices shares, good for a first enrollment and for nothing else."""

import contextlib
import os
from datetime import timedelta
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.keys import generate_key, write_key
from fleet.cli.desk import Desk, fleet_option
from fleet.cli.durations import DURATION
from fleet.cli.errors import CliError, attempting
from fleet.cli.home import utc_now
from fleet.cli.issued import Issued, request_for
from fleet.cli.output import output_option, print_rows, print_value
from fleet.cli.output_file import write_file
from fleet.cli.passwords import PasswordSource
from fleet.domain.claim import Claim, claim_state
from fleet.domain.device import plain_name
from fleet.domain.errors import Conflict
from fleet.services import claims
from fleet.wire.csr import decode_csr
from fleet.wire.encodings import Bundle, Form, write

CERTIFICATE, KEY, PKCS12, CA = "claim.pem", "claim.key", "claim.p12", "ca.pem"
COLUMNS = ("name", "model", "state", "uses", "quota", "takeovers", "expires_at", "why")


@click.group()
def claim() -> None:
    """Claim certificates: shared by a batch of new devices, for their first enrollment alone."""


@claim.command()
@fleet_option
@click.argument("name")
@click.option("--model", required=True, help="The model of its devices.")
@click.option(
    "--quota", type=click.IntRange(1, claims.QUOTA_MAX), required=True, help="How many devices it may enroll."
)
@click.option("--expires", type=DURATION, required=True, help="How long it lives: 12h, 30d.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for its files.")
@click.option(
    "--csr",
    "csr_file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A CSR, PEM or DER, for a key that was made elsewhere. Nothing of it counts but the key.",
)
@click.option("--p12", is_flag=True, help="Write claim.p12 as well, with certificate, chain and key.")
@click.option("--password-file", metavar="FILE", help="File whose first line is the password of claim.p12.")
@click.option("--password-env", metavar="VARIABLE", help="Environment variable that holds it.")
@output_option
def create(
    desk: Desk,
    name: str,
    model: str,
    quota: int,
    expires: timedelta,
    out: Path,
    csr_file: Path | None,
    p12: bool,
    password_file: str | None,
    password_env: str | None,
    output: str,
) -> None:
    """Make the claim NAME and write what its devices need into a folder.

    \b
    claim.pem  its certificate and the issuing CA
    claim.key  its key, made here unless there is a --csr, and kept nowhere else; mode 0600
    claim.p12  with --p12: all of them under a password
    ca.pem     the root that the devices trust

    The model must let them in: fleet model set MODEL --admit claim. It enrolls new devices of this model over EST and
    opens nothing else. One that is misused goes into quarantine by itself: shown at another door, asking for another
    model, or asking again and again for identities that have an owner.

    \b
    Example:
      fleet claim create batch-7 --model pump --quota 500 --expires 30d --out ./claim
    """
    if p12 and csr_file is not None:
        raise click.UsageError("--p12 holds the key, and with --csr the key is elsewhere.")
    password = None
    if p12:
        source = PasswordSource(f"'{out / PKCS12}'", "password", password_file, password_env)
        password = source.given_or_asked(confirm=True)
    with attempting(f"making claim '{name}'"):
        request = _request_in(csr_file) if csr_file is not None else None
        made, issued = _make_files(desk, name, model, quota, expires, out, request, password)
    print_value(
        {
            "name": name,
            "model": model,
            "quota": quota,
            "expires_at": made.expires_at,
            "serial": issued.serial,
            "certificate": str(out / CERTIFICATE),
            "key": str(out / KEY) if request is None else None,
            "pkcs12": str(out / PKCS12) if p12 else None,
            "ca_file": str(out / CA),
        },
        output,
    )


def _request_in(csr_file: Path) -> bytes:
    """The certificate request in `csr_file`, DER. Raises: WireError."""
    data = csr_file.read_bytes()
    if data.lstrip().startswith(b"-----BEGIN"):
        try:
            data = x509.load_pem_x509_csr(data).public_bytes(Encoding.DER)
        except ValueError:
            raise CliError(f"reading '{csr_file}'", "it holds no certificate request") from None
    decode_csr(data)
    return data


def _make_files(
    desk: Desk,
    name: str,
    model: str,
    quota: int,
    expires: timedelta,
    out: Path,
    request: bytes | None,
    password: bytes | None,
) -> tuple[Claim, Issued]:
    plain_name(name, "claim")
    root = next(each.certificate for each in desk.authorities() if each.role == "root")
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in (CERTIFICATE, KEY, PKCS12, CA):
        if os.path.lexists(out / file):  # a link that leads nowhere yet is somebody's plan
            raise Conflict("file-exists", f"{out / file} exists; nothing was changed.", "Name another folder.")
    key: ec.EllipticCurvePrivateKey | None = None
    if request is None:
        key = generate_key()
        write_key(out / KEY, key)
        request = request_for(name, key)
    try:
        made, issued = desk.add_claim(name, model, quota, request, expires)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            (out / KEY).unlink()  # it would open nothing
        raise
    try:
        write_file(out / CA, root.public_bytes(Encoding.PEM), secret=False)
        write_file(out / CERTIFICATE, b"".join(c.public_bytes(Encoding.PEM) for c in issued.chain), secret=False)
        if key is not None and password is not None:
            write_file(out / PKCS12, write(Bundle(issued.chain, private_key=key), Form.P12, password), secret=True)
    except OSError as error:
        raise CliError(
            f"writing the files of claim '{name}'",
            f"it is made, but {error.strerror} ({error.filename})",
            f"Run `fleet claim revoke {name}` and make a claim of another name",
        ) from error
    return made, issued


@claim.command(name="list")
@fleet_option
@output_option
def list_(desk: Desk, output: str) -> None:
    """List the claims: what each is good for, and why one is in quarantine."""
    with attempting("listing the claims"):
        found = desk.claims()
    now = utc_now()
    rows = [
        (c.name, c.model, claim_state(c, now), c.uses, c.quota, c.takeovers, c.expires_at, c.quarantine_reason or None)
        for c in found
    ]
    print_rows(COLUMNS, rows, output)


@claim.command()
@fleet_option
@click.argument("name")
@output_option
def show(desk: Desk, name: str, output: str) -> None:
    """Show the claim NAME with its certificate."""
    with attempting(f"showing claim '{name}'"):
        found, held = desk.claim(name)
    print_value(
        {
            "name": found.name,
            "model": found.model,
            "state": claim_state(found, utc_now()),
            "uses": found.uses,
            "quota": found.quota,
            "takeovers": found.takeovers,
            "created_at": found.created_at,
            "expires_at": found.expires_at,
            "quarantined_at": found.quarantined_at,
            "why": found.quarantine_reason or None,
            "revoked_at": found.revoked_at,
            "certificates": [{"serial": c.serial, "state": c.state, "sha256": c.sha256} for c in held],
        },
        output,
    )


_DOING = {
    "revoke": ("revoking", "revoked"),
    "quarantine": ("quarantining", "quarantined"),
    "release": ("releasing", "open"),
}


def _move(desk: Desk, verb: str, name: str, reason: str, output: str) -> None:
    doing, state = _DOING[verb]
    with attempting(f"{doing} claim '{name}'"):
        desk.move_claim(verb, name, reason)
    print_value({"name": name, "state": state}, output)


_reason = click.option("--reason", default="", metavar="TEXT", help="Why, for the audit.")


@claim.command()
@fleet_option
@click.argument("name")
@_reason
@output_option
def revoke(desk: Desk, name: str, reason: str, output: str) -> None:
    """Revoke the claim NAME, for good. Devices that it has enrolled stay; revoke them by themselves."""
    _move(desk, "revoke", name, reason, output)


@claim.command()
@fleet_option
@click.argument("name")
@_reason
@output_option
def quarantine(desk: Desk, name: str, reason: str, output: str) -> None:
    """Let the claim NAME enroll nobody until it is released."""
    _move(desk, "quarantine", name, reason, output)


@claim.command()
@fleet_option
@click.argument("name")
@_reason
@output_option
def release(desk: Desk, name: str, reason: str, output: str) -> None:
    """Let the claim NAME out of quarantine. Look into the audit first: fleet audit list --subject 'claim NAME'."""
    _move(desk, "release", name, reason, output)
