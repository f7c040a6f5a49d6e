"""`fleet operator`: people and programs that use the admin API, and their client certificates."""

import shlex
from datetime import timedelta
from pathlib import Path

import click

from fleet.cli.errors import attempting
from fleet.cli.key_files import KeyFiles, enroll_with_files
from fleet.cli.options import client_option, days_option, out_option
from fleet.cli.output import Row, output_option, print_value
from fleet.cli.parameters import MODEL, OPERATOR
from fleet.cli.passwords import PasswordSource, password_options
from fleet.cli.records import Records, body_of, ids_of, print_each, revocation_options
from fleet.client.client import Client
from fleet.domain import access
from fleet.domain.access import Role


@click.group()
def operator() -> None:
    """Operators: people and programs that use the admin API, each with a role and a certificate."""


def _shown(operator: Row) -> Row:
    """The API's operator, "*" in place of no restriction to models."""
    return {**operator, "models": operator["models"] or ["*"]}


def _with_permissions(client: Client, name: str) -> Row:
    found = client.get(OPERATORS.path(name))
    permitted = access.PERMISSIONS[Role(found["role"])] - (access.FLEET_WIDE if found["models"] else frozenset())
    return {**_shown(found), "permissions": sorted(permitted)}


COLUMNS = ("name", "role", "models", "certificate", "not_after", "created_at")
OPERATORS = Records(operator, OPERATOR, COLUMNS, _shown)
OPERATORS.list("List the operators, with roles and certificates.")
OPERATORS.show("Show operators: role, permissions, certificate.", _with_permissions)


@operator.command()
@client_option
@ids_of(OPERATOR, "OPERATOR...")
@revocation_options
@click.option("--tokens", is_flag=True, help="Revoke the tokens, too, that they made and that can still be used.")
@output_option
def revoke(client: Client, ids: tuple[str, ...], tokens: bool, output: str, **given: str) -> None:
    """Revoke the certificates of operators.

    The admin API refuses them from now on, and their event streams are closed. Tokens that they made stay valid
    without --tokens; `fleet operator show` says how many there are, and with --tokens it is said how many were revoked.
    """

    def ask(name: str) -> Row:
        body = {**body_of(**given), **({"tokens": True} if tokens else {})}
        done = client.post(f"{OPERATORS.path(name)}/revoke", body)
        if count := done.get("open_tokens"):
            click.echo(
                f"{count} token{'' if count == 1 else 's'} that '{name}' made can still be used. Revoke them with: "
                f"fleet operator revoke {name} --tokens",
                err=True,
            )
        counted = {"revoked_tokens": done["revoked_tokens"]} if tokens else {}
        return {"name": name, "certificate": "revoked", **counted}

    print_each(ids, "revoking operator '{}'", ask, output)


@operator.command()
@client_option
@click.argument("name", type=OPERATOR)
@click.option("--role", type=click.Choice([role.value for role in Role]), required=True, help="What it may do.")
@click.option("--model", "models", type=MODEL, multiple=True, help="Restrict it to this model; may be repeated.")
@out_option
@days_option
@password_options("File whose first line is the password of NAME.p12.", "Environment variable that holds it.")
@output_option
def add(
    client: Client,
    name: str,
    role: str,
    models: tuple[str, ...],
    out: Path,
    days: int,
    password: PasswordSource,
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
      operator  manages devices: registers, tags, suspends, revokes, makes tokens
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
    secret = password.given_or_asked(f"'{files.pkcs12}'", confirm=True)
    lifetime = int(timedelta(days=days).total_seconds())
    terms = {"name": name, "role": role, "models": list(models), "lifetime_seconds": lifetime}
    with attempting(f"adding operator '{name}'"):
        _, certificate = enroll_with_files(client, "operator", terms, files, password=secret)
    print_value({"name": name, "role": role, "models": models or ("*",), **files.shown(certificate)}, output)
    if output == "table":
        given = f"--cert {shlex.quote(str(files.certificate))} --ca {shlex.quote(str(files.ca))}"
        click.echo(f"\nNext, on the machine of {name}: fleet device list --url https://HOST:PORT {given}")
