"""`fleet operator`: people and programs that use the admin API, and the certificates by which they come."""

import os
import shlex
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fleet.authorities import authority_chain, load_operators_issuer
from fleet.ca.keys import generate_key, write_key
from fleet.cli.errors import CliError, attempting
from fleet.cli.home import OPERATOR, home_option, opened, run, utc_now
from fleet.cli.output import output_option, print_rows, print_value
from fleet.cli.output_file import write_file
from fleet.cli.passwords import PasswordSource
from fleet.domain import access
from fleet.domain.access import Act, Role
from fleet.domain.credential import Credential
from fleet.domain.device import plain_name
from fleet.domain.errors import Conflict, NotFound
from fleet.home import open_home
from fleet.services import operators
from fleet.wire.encodings import Bundle, Form, write

COLUMNS = ("name", "role", "models", "certificate", "not_after", "created_at")

Found = tuple[access.Operator, list[Credential]]


@click.group()
def operator() -> None:
    """Operators: people and programs that use the admin API, each with a role and a certificate."""


@dataclass(frozen=True, slots=True)
class Files:
    """Where an operator's files go."""

    folder: Path
    name: str

    @property
    def certificate(self) -> Path:
        return self.folder / f"{self.name}.pem"

    @property
    def key(self) -> Path:
        return self.folder / f"{self.name}.key"

    @property
    def pkcs12(self) -> Path:
        return self.folder / f"{self.name}.p12"

    @property
    def authority(self) -> Path:
        return self.folder / "ca.pem"


@operator.command()
@home_option
@click.argument("name")
@click.option("--role", type=click.Choice([role.value for role in Role]), required=True, help="What it may do.")
@click.option("--model", "models", multiple=True, help="Hold it to this model; may be repeated. Without: all models.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for its files.")
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="Life of its certificate.")
@click.option("--password-file", metavar="FILE", help="File whose first line is the password of NAME.p12.")
@click.option("--password-env", metavar="VARIABLE", help="Environment variable that holds it.")
@output_option
def add(
    home: Path,
    name: str,
    role: str,
    models: tuple[str, ...],
    out: Path,
    days: int,
    password_file: str | None,
    password_env: str | None,
    output: str,
) -> None:
    """Add the operator NAME and write what it needs into a folder.

    \b
    NAME.pem  its certificate and the operators' CA
    NAME.key  its key, made here and kept nowhere else; mode 0600
    NAME.p12  both of them under a password, for browsers and Windows
    ca.pem    the root by which it knows the server

    \b
    Roles:
      viewer    reads everything
      operator  runs devices: registers, tags, suspends, revokes, makes tokens
      factory   registers devices of its models and makes tokens for them
      admin     everything

    \b
    Examples:
      fleet operator add bob --role admin --out ./operators --password-file bob.password
      fleet operator add line-1 --role factory --model pump --out ./operators --password-env P12_PASSWORD
    """
    files = Files(out, name)
    password = PasswordSource(f"'{files.pkcs12}'", "password", password_file, password_env).given_or_asked(confirm=True)
    with attempting(f"adding operator '{name}'"):
        credential = _make_files(home, files, Role(role), models, timedelta(days=days), password)
    print_value(
        {
            "name": name,
            "role": role,
            "models": models or ("*",),
            "serial": credential.serial,
            "not_after": credential.not_after,
            "certificate": str(files.certificate),
            "key": str(files.key),
            "pkcs12": str(files.pkcs12),
            "ca_file": str(files.authority),
        },
        output,
    )
    if output == "table":
        given = f"--cert {shlex.quote(str(files.certificate))} --ca {shlex.quote(str(files.authority))}"
        click.echo(f"\nNext, from wherever {name} is: fleet device list --url https://HOST:8444 {given}")


def _make_files(
    home: Path, files: Files, role: Role, models: tuple[str, ...], lifetime: timedelta, password: bytes
) -> Credential:
    root = authority_chain(open_home(home))[0].public_bytes(Encoding.PEM)
    _must_be_free(files, root)
    key = generate_key()
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    async def work() -> tuple[Credential, x509.Certificate]:
        async with opened(home) as fleet:
            act = Act(OPERATOR, utc_now())
            issuer = load_operators_issuer(fleet.home, act.now)
            made = await operators.enroll_operator(
                fleet.registry, issuer, files.name, role, models, spki, lifetime=lifetime, act=act
            )
            return made, issuer.certificate

    write_key(files.key, key)
    try:
        credential, authority = run(work())
    except BaseException:
        files.key.unlink()  # it would open nothing
        raise
    chain = (x509.load_der_x509_certificate(credential.der), authority)
    try:
        if not files.authority.exists():
            write_file(files.authority, root, secret=False)
        write_file(files.certificate, b"".join(c.public_bytes(Encoding.PEM) for c in chain), secret=False)
        write_file(files.pkcs12, write(Bundle(chain, private_key=key), Form.P12, password), secret=True)
    except OSError as error:
        raise CliError(
            f"writing the files of operator '{files.name}'",
            f"it is registered, but {error.strerror} ({error.filename})",
            f"Run `fleet operator revoke {files.name}` and add an operator of another name",
        ) from error
    return credential


def _must_be_free(files: Files, root: bytes) -> None:
    plain_name(files.name, "person or program")  # before it is part of a path
    files.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in (files.certificate, files.key, files.pkcs12):
        if os.path.lexists(file) or file == files.authority:  # a link that leads nowhere yet is somebody's plan
            raise Conflict("file-exists", f"{file} is taken; nothing was changed.", "Take another name or folder.")
    if os.path.lexists(files.authority) and files.authority.read_bytes() != root:
        message = f"{files.authority} is another fleet's; nothing was changed."
        raise Conflict("file-exists", message, "Name another folder.")


@operator.command(name="list")
@home_option
@output_option
def list_(home: Path, output: str) -> None:
    """List the operators, with roles and certificates."""

    async def work() -> list[Found]:
        async with opened(home) as fleet:
            known = await fleet.registry.operators()
            return [(each, await operators.held_by_operator(fleet.registry, each.name)) for each in known]

    with attempting("listing the operators"):
        found = run(work())
    print_rows(COLUMNS, [tuple(_shown(each, held).values()) for each, held in found], output)


@operator.command()
@home_option
@click.argument("name")
@output_option
def show(home: Path, name: str, output: str) -> None:
    """Show an operator: role, rights, certificate."""

    async def work() -> Found:
        async with opened(home) as fleet:
            found = await fleet.registry.operator(name)
            if found is None:
                raise NotFound("no-such-operator", f"There is no operator {name!r}.", "See: fleet operator list")
            return found, await operators.held_by_operator(fleet.registry, name)

    with attempting(f"showing operator '{name}'"):
        found, held = run(work())
    permitted = access.PERMISSIONS[found.role] - (access.FLEET_WIDE if found.models else frozenset())
    value = {**_shown(found, held), "permissions": sorted(permitted), "serial": held[-1].serial if held else None}
    print_value(value, output)


@operator.command()
@home_option
@click.argument("name")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the audit.")
@output_option
def revoke(home: Path, name: str, reason: str, output: str) -> None:
    """Revoke an operator's certificate.

    The admin API refuses NAME from now on, and its streams of events end.
    """

    async def work() -> None:
        async with opened(home) as fleet:
            await operators.revoke_operator(fleet.registry, name, act=Act(OPERATOR, utc_now()), reason=reason)

    with attempting(f"revoking operator '{name}'"):
        run(work())
    print_value({"name": name, "certificate": "revoked"}, output)


def _shown(known: access.Operator, held: list[Credential]) -> dict[str, object]:
    newest = held[-1] if held else None
    return {
        "name": known.name,
        "role": known.role,
        "models": known.models or ("*",),
        "certificate": newest.state if newest else None,
        "not_after": newest.not_after if newest else None,
        "created_at": known.created_at,
    }
