"""`fleet claim`: certificates shared by a batch of devices, valid for a first enrollment only."""

from datetime import timedelta
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.cli.durations import CERTIFICATE_LIFETIME
from fleet.cli.errors import CliError, attempting
from fleet.cli.key_files import Holder, KeyFiles, enroll_with_files
from fleet.cli.options import client_option, limit_option, reason_option
from fleet.cli.output import Row, output_option, print_rows, print_value
from fleet.cli.parameters import CLAIM, MODEL
from fleet.cli.passwords import PasswordSource
from fleet.cli.several import print_each
from fleet.client.client import Client, path_of
from fleet.services.claims import QUOTA_MAX
from fleet.wire.csr import decode_csr

COLUMNS = ("name", "model", "state", "uses", "quota", "takeovers", "expires_at", "why")
SHOWN = (*COLUMNS[:6], "created_at", "expires_at", "quarantined_at", "why", "revoked_at", "certificates")


@click.group()
def claim() -> None:
    """Claim certificates: shared by a batch of new devices, for their first enrollment only."""


@claim.command()
@client_option
@click.argument("name", type=CLAIM)
@click.option("--model", required=True, type=MODEL, help="The model of its devices.")
@click.option("--quota", type=click.IntRange(1, QUOTA_MAX), required=True, help="How many devices it may enroll.")
@click.option("--expires", type=CERTIFICATE_LIFETIME, required=True, help="Lifetime: 12h, 30d.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for its files.")
@click.option(
    "--csr",
    "csr_file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A CSR, PEM or DER, for a key that was made elsewhere. Only its public key is used.",
)
@click.option("--p12", is_flag=True, help="Write claim.p12 as well, with certificate, chain and key.")
@click.option("--password-file", metavar="FILE", help="File whose first line is the password of claim.p12.")
@click.option("--password-env", metavar="VARIABLE", help="Environment variable that holds it.")
@output_option
def create(
    client: Client,
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
    """Make the claim NAME and write the files for its devices into a folder.

    \b
    claim.pem  its certificate and the issuing CA
    claim.key  its key, made here unless there is a --csr, and stored nowhere else; mode 0600
    claim.p12  with --p12: all of them, encrypted with a password
    ca.pem     the root CA that the devices trust

    The model must admit it: fleet model set MODEL --admit claim. It enrolls new devices of this model over EST and is
    refused everywhere else. Misuse quarantines it automatically: presenting it to another service, requesting another
    model, or repeatedly requesting identities that are taken.

    \b
    Example:
      fleet claim create batch-7 --model pump --quota 500 --expires 30d --out ./claim
    """
    if p12 and csr_file is not None:
        raise click.UsageError("--p12 holds the key, and with --csr the key is elsewhere.")
    files = KeyFiles(out, "claim")
    password = None
    if p12:
        source = PasswordSource(f"'{files.pkcs12}'", "password", password_file, password_env)
        password = source.given_or_asked(confirm=True)
    terms = {"model": model, "quota": quota, "lifetime_seconds": int(expires.total_seconds())}

    def enroll(csr: str) -> Row:
        return dict(client.post("/v1/claims", {"name": name, **terms, "csr": csr}))

    with attempting(f"making claim '{name}'"):
        request = _request_in(csr_file) if csr_file is not None else None
        holder = Holder("claim", name)
        made, certificate = enroll_with_files(client, holder, files, enroll, csr=request, password=password)
    print_value(
        {
            "name": name,
            "model": model,
            "quota": quota,
            "expires_at": made["expires_at"],
            "serial": f"{certificate.serial_number:x}",
            "certificate": str(files.certificate),
            "key": str(files.key) if request is None else None,
            "pkcs12": str(files.pkcs12) if p12 else None,
            "ca_file": str(files.ca),
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


@claim.command(name="list")
@client_option
@limit_option
@output_option
def list_(client: Client, limit: int | None, output: str) -> None:
    """List the claims: their quota and state, and why one is quarantined."""
    with attempting("listing the claims"):
        print_rows(COLUMNS, map(_shown, client.items("/v1/claims", limit)), output)


@claim.command()
@client_option
@click.argument("names", type=CLAIM, nargs=-1, required=True, metavar="NAME...")
@output_option
def show(client: Client, names: tuple[str, ...], output: str) -> None:
    """Show claims with their certificates."""

    def shown(name: str) -> Row:
        path = path_of("/v1/claims/{}", name)
        return {**_shown(client.get(path)), "certificates": list(client.items(f"{path}/credentials"))}

    print_each(names, "showing claim '{}'", shown, output, _in_short)


def _shown(claim: Row) -> dict[str, object]:
    """The API's claim, with the reason of a quarantine under the key that the commands have for it."""
    return {**claim, "why": claim["quarantine_reason"] or None}


def _in_short(claim: Row) -> Row:
    held = [{key: each[key] for key in ("serial", "state", "sha256")} for each in claim["certificates"]]
    return {key: claim[key] for key in SHOWN} | {"certificates": held}


_STATES = {
    "revoke": ("revoking", "revoked"),
    "quarantine": ("quarantining", "quarantined"),
    "release": ("releasing", "open"),
}


def _move(client: Client, verb: str, names: tuple[str, ...], reason: str, output: str) -> None:
    doing, state = _STATES[verb]

    def moved(name: str) -> Row:
        client.post(path_of("/v1/claims/{}/{}", name, verb), {"reason": reason})
        return {"name": name, "state": state}

    print_each(names, f"{doing} claim '{{}}'", moved, output)


_names = click.argument("names", type=CLAIM, nargs=-1, required=True, metavar="NAME...")


@claim.command()
@client_option
@_names
@reason_option
@output_option
def revoke(client: Client, names: tuple[str, ...], reason: str, output: str) -> None:
    """Revoke claims permanently. Devices that they enrolled stay; revoke them separately."""
    _move(client, "revoke", names, reason, output)


@claim.command()
@client_option
@_names
@reason_option
@output_option
def quarantine(client: Client, names: tuple[str, ...], reason: str, output: str) -> None:
    """Refuse enrollments with these claims until they are released."""
    _move(client, "quarantine", names, reason, output)


@claim.command()
@client_option
@_names
@reason_option
@output_option
def release(client: Client, names: tuple[str, ...], reason: str, output: str) -> None:
    """Release claims from quarantine. Look into the audit first: fleet audit list --subject 'claim NAME'."""
    _move(client, "release", names, reason, output)
