"""`fleet operator`: people and programs that use the admin API, and the certificates by which they come."""

import os
import shlex
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import click
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.keys import generate_key, write_key
from fleet.cli.desk import Desk, fleet_option
from fleet.cli.errors import CliError, attempting
from fleet.cli.issued import Issued, Newest, request_for
from fleet.cli.output import output_option, print_rows, print_value
from fleet.cli.output_file import write_file
from fleet.cli.passwords import PasswordSource
from fleet.domain import access
from fleet.domain.access import Role
from fleet.domain.device import plain_name
from fleet.domain.errors import Conflict
from fleet.wire.encodings import Bundle, Form, write

COLUMNS = ("name", "role", "models", "certificate", "not_after", "created_at")


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
@fleet_option
@click.argument("name")
@click.option("--role", type=click.Choice([role.value for role in Role]), required=True, help="What it may do.")
@click.option("--model", "models", multiple=True, help="Hold it to this model; may be repeated. Without: all models.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for its files.")
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="Life of its certificate.")
@click.option("--password-file", metavar="FILE", help="File whose first line is the password of NAME.p12.")
@click.option("--password-env", metavar="VARIABLE", help="Environment variable that holds it.")
@output_option
def add(
    desk: Desk,
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
    NAME.key  its key, made on this machine and kept nowhere else; mode 0600
    NAME.p12  both of them under a password, for browsers and Windows
    ca.pem    the root by which it knows the server

    \b
    Roles:
      viewer    reads everything
      operator  runs devices: registers, tags, suspends, revokes, makes tokens
      factory   registers devices of its models and makes tokens for new ones
      admin     everything

    \b
    Examples:
      fleet operator add bob --role admin --out ./operators --password-file bob.password
      fleet operator add line-1 --role factory --model pump --out ./operators --password-env P12_PASSWORD
    """
    files = Files(out, name)
    password = PasswordSource(f"'{files.pkcs12}'", "password", password_file, password_env).given_or_asked(confirm=True)
    with attempting(f"adding operator '{name}'"):
        issued = _make_files(desk, files, Role(role), models, timedelta(days=days), password)
    print_value(
        {
            "name": name,
            "role": role,
            "models": models or ("*",),
            "serial": issued.serial,
            "not_after": issued.not_after,
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
    desk: Desk, files: Files, role: Role, models: tuple[str, ...], lifetime: timedelta, password: bytes
) -> Issued:
    plain_name(files.name, "person or program")  # before it is part of a path
    found = next(each.certificate for each in desk.authorities() if each.role == "root")
    root = found.public_bytes(Encoding.PEM)
    _must_be_free(files, root)
    key = generate_key()
    write_key(files.key, key)
    try:
        issued = desk.add_operator(files.name, role, models, request_for(files.name, key), lifetime)
    except BaseException:
        files.key.unlink()  # it would open nothing
        raise
    try:
        if not files.authority.exists():
            write_file(files.authority, root, secret=False)
        write_file(files.certificate, b"".join(c.public_bytes(Encoding.PEM) for c in issued.chain), secret=False)
        write_file(files.pkcs12, write(Bundle(issued.chain, private_key=key), Form.P12, password), secret=True)
    except OSError as error:
        raise CliError(
            f"writing the files of operator '{files.name}'",
            f"it is registered, but {error.strerror} ({error.filename})",
            f"Run `fleet operator revoke {files.name}` and add an operator of another name",
        ) from error
    return issued


def _must_be_free(files: Files, root: bytes) -> None:
    files.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in (files.certificate, files.key, files.pkcs12):
        if os.path.lexists(file) or file == files.authority:  # a link that leads nowhere yet is somebody's plan
            raise Conflict("file-exists", f"{file} is taken; nothing was changed.", "Take another name or folder.")
    if os.path.lexists(files.authority) and files.authority.read_bytes() != root:
        message = f"{files.authority} is another fleet's; nothing was changed."
        raise Conflict("file-exists", message, "Name another folder.")


@operator.command(name="list")
@fleet_option
@output_option
def list_(desk: Desk, output: str) -> None:
    """List the operators, with roles and certificates."""

    with attempting("listing the operators"):
        found = desk.operators()
    print_rows(COLUMNS, [tuple(_shown(*each).values()) for each in found], output)


@operator.command()
@fleet_option
@click.argument("name")
@output_option
def show(desk: Desk, name: str, output: str) -> None:
    """Show an operator: role, rights, certificate."""

    with attempting(f"showing operator '{name}'"):
        found, newest = desk.operator(name)
    permitted = access.PERMISSIONS[found.role] - (access.FLEET_WIDE if found.models else frozenset())
    value = {**_shown(found, newest), "permissions": sorted(permitted), "serial": newest.serial if newest else None}
    print_value(value, output)


@operator.command()
@fleet_option
@click.argument("name")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the audit.")
@output_option
def revoke(desk: Desk, name: str, reason: str, output: str) -> None:
    """Revoke an operator's certificate.

    The admin API refuses NAME from now on, and its streams of events end.
    """

    with attempting(f"revoking operator '{name}'"):
        desk.revoke_operator(name, reason)
    print_value({"name": name, "certificate": "revoked"}, output)


def _shown(known: access.Operator, newest: Newest | None) -> dict[str, object]:
    return {
        "name": known.name,
        "role": known.role,
        "models": known.models or ("*",),
        "certificate": newest.state if newest else None,
        "not_after": newest.not_after if newest else None,
        "created_at": known.created_at,
    }
