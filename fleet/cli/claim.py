"""`fleet claim`: certificates shared by a batch of devices, valid for a first enrollment only."""

from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.cli.errors import CliError, attempting
from fleet.cli.key_files import KeyFiles, enroll_with_files
from fleet.cli.options import client_option, out_option
from fleet.cli.output import Row, output_option, print_value
from fleet.cli.parameters import CERTIFICATE_LIFETIME, CLAIM, MODEL
from fleet.cli.passwords import PasswordSource, password_options
from fleet.cli.records import Records, revocation_options
from fleet.client.client import Client, path_of
from fleet.config.small_files import read_argument
from fleet.domain.errors import FleetError
from fleet.domain.model_rules import AdmissionPath
from fleet.services.claims import QUOTA_MAX
from fleet.wire.csr import decode_csr

_IN_FRONT = ("name", "model", "state", "uses", "quota", "takeovers")
COLUMNS = (*_IN_FRONT, "expires_at", "why")
SHOWN = (*_IN_FRONT, "created_at", "expires_at", "quarantined_at", "why", "revoked_at", "certificates")


@click.group()
def claim() -> None:
    """Claim certificates: shared by a batch of new devices, for their first enrollment only."""


def _shown(claim: Row) -> Row:
    """The API's claim, with the reason of a quarantine under the key that the commands have for it."""
    return {**claim, "why": claim["quarantine_reason"] or None}


def _in_short(claim: Row) -> Row:
    keys = ("serial", "state", "sha256", "revoked_at", "crl_reason")
    held = [{key: each[key] for key in keys if key in each} for each in claim["certificates"]]
    return {key: claim[key] for key in SHOWN} | {"certificates": held}


CLAIMS = Records(claim, CLAIM, COLUMNS, _shown)
CLAIMS.list("List the claims: their quota and state, and why one is quarantined.")
CLAIMS.show("Show claims with their certificates.", CLAIMS.get_with_certificates, _in_short)
CLAIMS.act(
    "revoke",
    "Revoke claims permanently. Devices that they enrolled stay; revoke them separately.",
    {"state": "revoked"},
    options=revocation_options,
)
CLAIMS.act("quarantine", "Refuse enrollments with these claims until they are released.", {"state": "quarantined"})
CLAIMS.act(
    "release",
    "Release claims from quarantine. Look into the audit first: fleet audit list --subject 'claim NAME'.",
    {"state": "open"},
)


@claim.command()
@client_option
@click.argument("name", type=CLAIM)
@click.option("--model", required=True, type=MODEL, help="The model of its devices.")
@click.option("--quota", type=click.IntRange(1, QUOTA_MAX), required=True, help="How many devices it may enroll.")
@click.option("--expires", type=CERTIFICATE_LIFETIME, required=True, help="Lifetime: 12h, 30d.")
@out_option
@click.option(
    "--csr",
    "csr_file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A CSR, PEM or DER, for a key that was made elsewhere. Only its public key is used.",
)
@click.option("--p12", is_flag=True, help="Write claim.p12 as well, with certificate, chain and key.")
@password_options("File whose first line is the password of claim.p12.", "Environment variable that holds it.")
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
    password: PasswordSource,
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
    secret = password.given_or_asked(f"'{files.pkcs12}'", confirm=True) if p12 else None
    terms = {"name": name, "model": model, "quota": quota, "lifetime_seconds": int(expires.total_seconds())}
    with attempting(f"making claim '{name}'"):
        _warn_unless_admitted(client, model)
        csr = _request_in(csr_file) if csr_file is not None else None
        made, certificate = enroll_with_files(client, "claim", terms, files, csr=csr, password=secret)
    shown = files.shown(certificate, without="not_after")
    print_value({"name": name, "model": model, "quota": quota, "expires_at": made["expires_at"], **shown}, output)


def _warn_unless_admitted(client: Client, model: str) -> None:
    with suppress(FleetError):  # the POST before has said what is wrong
        paths = client.get(path_of("/v1/models/{}", model))["admission"]["paths"]
        if AdmissionPath.CLAIM not in paths:
            admit = " ".join(f"--admit {each}" for each in (*paths, AdmissionPath.CLAIM))
            text = f"Warning: model {model} does not admit claims yet. Run: fleet model set {model} {admit}"
            click.echo(text, err=True)


def _request_in(csr_file: Path) -> bytes:
    """The certificate request in `csr_file`, DER. Raises: WireError."""
    data = read_argument(csr_file)
    if data.lstrip().startswith(b"-----BEGIN"):
        try:
            data = x509.load_pem_x509_csr(data).public_bytes(Encoding.DER)
        except ValueError:
            raise CliError(f"reading '{csr_file}'", "it holds no certificate request") from None
    decode_csr(data)
    return data
