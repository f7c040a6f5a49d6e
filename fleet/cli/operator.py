"""`fleet operator`: people and programs that use the admin API, and their client certificates."""

import shlex
from datetime import timedelta
from pathlib import Path

import click

from fleet.cli.errors import attempting
from fleet.cli.key_files import Holder, KeyFiles, enroll_with_files
from fleet.cli.options import client_option, limit_option, reason_option
from fleet.cli.output import Row, output_option, print_rows, print_value
from fleet.cli.parameters import MODEL, OPERATOR
from fleet.cli.passwords import PasswordSource
from fleet.cli.several import print_each
from fleet.client.client import Client, path_of
from fleet.domain import access
from fleet.domain.access import Role

COLUMNS = ("name", "role", "models", "certificate", "not_after", "created_at")


@click.group()
def operator() -> None:
    """Operators: people and programs that use the admin API, each with a role and a certificate."""


@operator.command()
@client_option
@click.argument("name", type=OPERATOR)
@click.option("--role", type=click.Choice([role.value for role in Role]), required=True, help="What it may do.")
@click.option("--model", "models", type=MODEL, multiple=True, help="Restrict it to this model; may be repeated.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for its files.")
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="Certificate lifetime.")
@click.option("--password-file", metavar="FILE", help="File whose first line is the password of NAME.p12.")
@click.option("--password-env", metavar="VARIABLE", help="Environment variable that holds it.")
@output_option
def add(
    client: Client,
    name: str,
    role: str,
    models: tuple[str, ...],
    out: Path,
    days: int,
    password_file: str | None,
    password_env: str | None,
    output: str,
) -> None:
    """Add the operator NAME and write its files into a folder.

    \b
    NAME.pem  its certificate and the operators' CA
    NAME.key  its key, made on this machine and stored nowhere else; mode 0600
    NAME.p12  both, encrypted with a password, for browsers and Windows
    ca.pem    the root CA that the server is verified with

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
    if role == "factory" and not models:
        raise click.UsageError("--role factory needs --model: it is always restricted to models.")
    files = KeyFiles(out, name, shares_folder=True)
    password = PasswordSource(f"'{files.pkcs12}'", "password", password_file, password_env).given_or_asked(confirm=True)
    terms = {"role": role, "models": list(models), "lifetime_seconds": int(timedelta(days=days).total_seconds())}

    def enroll(csr: str) -> Row:
        return dict(client.post("/v1/operators", {"name": name, **terms, "csr": csr}))

    with attempting(f"adding operator '{name}'"):
        _, certificate = enroll_with_files(client, Holder("operator", name), files, enroll, password=password)
    print_value(
        {
            "name": name,
            "role": role,
            "models": models or ("*",),
            "serial": f"{certificate.serial_number:x}",
            "not_after": certificate.not_valid_after_utc,
            "certificate": str(files.certificate),
            "key": str(files.key),
            "pkcs12": str(files.pkcs12),
            "ca_file": str(files.ca),
        },
        output,
    )
    if output == "table":
        given = f"--cert {shlex.quote(str(files.certificate))} --ca {shlex.quote(str(files.ca))}"
        click.echo(f"\nNext, on the machine of {name}: fleet device list --url https://HOST:8444 {given}")


@operator.command(name="list")
@client_option
@limit_option
@output_option
def list_(client: Client, limit: int | None, output: str) -> None:
    """List the operators, with roles and certificates."""
    with attempting("listing the operators"):
        print_rows(COLUMNS, map(_shown, client.items("/v1/operators", limit)), output)


@operator.command()
@client_option
@click.argument("names", type=OPERATOR, nargs=-1, required=True, metavar="NAME...")
@output_option
def show(client: Client, names: tuple[str, ...], output: str) -> None:
    """Show operators: role, permissions, certificate."""

    def shown(name: str) -> Row:
        found = client.get(path_of("/v1/operators/{}", name))
        permitted = access.PERMISSIONS[Role(found["role"])] - (access.FLEET_WIDE if found["models"] else frozenset())
        return {**_shown(found), "permissions": sorted(permitted)}

    print_each(names, "showing operator '{}'", shown, output)


@operator.command()
@client_option
@click.argument("names", type=OPERATOR, nargs=-1, required=True, metavar="NAME...")
@reason_option
@output_option
def revoke(client: Client, names: tuple[str, ...], reason: str, output: str) -> None:
    """Revoke the certificates of operators.

    The admin API refuses them from now on, and their event streams are closed.
    """

    def revoked(name: str) -> Row:
        client.post(path_of("/v1/operators/{}/revoke", name), {"reason": reason})
        return {"name": name, "certificate": "revoked"}

    print_each(names, "revoking operator '{}'", revoked, output)


def _shown(operator: Row) -> dict[str, object]:
    """The API's operator, "*" in place of no restriction to models."""
    return {**operator, "models": operator["models"] or ["*"]}
