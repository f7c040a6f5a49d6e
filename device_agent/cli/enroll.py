"""`device-agent enroll` and `renew`, and where the token comes from."""

import os
import sys
from pathlib import Path
from typing import BinaryIO

import click

from device_agent.cli import enrollment
from device_agent.cli.deploy import deploy_unless_running
from device_agent.cli.options import HANDED_FILE, pass_home, usage_errors
from device_agent.config.agent_config import read_config
from device_agent.link.clock import device_clock
from device_agent.store.key_store import FILE, use_here, use_in_children
from device_agent.times import shown
from fleet.est_client.arguments import AGENT_KEY_TYPES, check_printable
from fleet.wire.errors import Malformed
from fleet.wire.text import without_mark

TOKEN_SIZE_MAX = 4096  # bytes
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_ANY = click.Path(readable=False, path_type=Path)


def _opened(context: click.Context, param: click.Parameter, file: Path | None) -> BinaryIO | None:
    """At once: root's token is root's to read, and a program of the home's owner goes on with the descriptor."""
    if file is None:
        return None
    handed = os.environ.pop(HANDED_FILE, "")
    path = file if handed else _FILE.convert(file, param, context)
    opened = open(path, "rb", opener=(lambda *_: int(handed)) if handed else None)  # noqa: SIM115 - with the context
    context.call_on_close(opened.close)
    return opened


@click.command()
@click.option(
    "--token-file", type=click.Path(path_type=Path, readable=False), callback=_opened, help="File with the token."
)
@click.option("--token-env", metavar="VAR", help="Environment variable with the token.")
@click.option(
    "--certificate", type=_FILE, help="Instead of a token: certificate of the manufacturer (IDevID) or a claim, PEM."
)
@click.option("--key", type=_FILE, help="The key of --certificate, PEM.")
@click.option(
    "--keep",
    is_flag=True,
    help="Keep token or certificate in the home. The agent enrolls with it again, without a person, when its own "
    "certificate is lost or has ended, if the device's model allows it.",
)
@click.option(
    "--keep-in-clear",
    is_flag=True,
    help="The same in a home whose keys are in hardware: the token, or the key of --certificate, is a file there, with "
    "which anybody who copies the disk can enroll.",
)
@click.option(
    "--key-type",
    type=click.Choice(AGENT_KEY_TYPES),
    default=AGENT_KEY_TYPES[0],
    show_default=True,
    help="Type of the key to generate. The device's model must allow it.",
)
@click.option("--approval", is_flag=True, help="Without a token: request an operator's approval, and wait for it.")
@click.option(
    "--model", default="", metavar="NAME", help="With --approval: the model, if the device is not registered."
)
@click.option(
    "--again", is_flag=True, help="Even if enrolled. The old certificate is kept until the new one is proven."
)
@pass_home
def enroll(
    home: Path,
    token_file: BinaryIO | None,
    token_env: str | None,
    certificate: Path | None,
    key: Path | None,
    keep: bool,
    keep_in_clear: bool,
    key_type: str,
    approval: bool,
    model: str,
    again: bool,
) -> None:
    """Generate a key and get the first certificate, with a one-time token or an operator's approval.

    The token is read from a file, an environment variable, a prompt or a pipe. It is never an argument, where every
    user of the machine could read it with `ps`.

    While the server asks to retry later, waits up to a minute in all, and prints how long and why.

    With --approval, prints the fingerprint of the key for the operator to compare, and waits for the decision. It can
    be interrupted and started again: it retries with the same key.
    """
    config = read_config(home)
    use_in_children(config.key_store)
    if keep and not keep_in_clear and config.key_store.kind != FILE:
        raise click.UsageError(
            f"Keys are kept in {config.key_store.kind}, and what --keep keeps would be a file: anybody who copies the "
            "disk could enroll with it. Pass --keep-in-clear if that may be."
        )
    keep = keep or keep_in_clear
    given = (approval, certificate is not None, token_file is not None or token_env is not None)
    if sum(given) > 1 or (certificate is None) != (key is None) or (approval and keep):
        raise click.UsageError("Pass a token, --certificate with --key, or --approval; --keep goes with the first two.")
    if model and not approval:
        raise click.UsageError("--model needs --approval: a token names its device's model.")
    with usage_errors():
        check_printable(model, "The model")
    files = (certificate, key) if certificate and key else None
    token = "" if approval or files else _token(token_file, token_env)
    request = enrollment.EnrollmentRequest(key_type, token, files, keep, label=model, again=again)
    now = device_clock(home).now()
    try:
        identity = enrollment.enroll(config, request, now, report=lambda text: click.echo(text, err=True))
    except KeyboardInterrupt:
        click.echo("Interrupted. The same command goes on with the same key, and the same token.", err=True)
        raise
    deploy_unless_running(config)
    click.echo(f"Enrolled as {config.device_id} until {shown(identity.certificate.not_after)}.")


@click.command()
@pass_home
def renew(home: Path) -> None:
    """Renew the certificate now. The new one is proven by a connection before it replaces the old one.

    A running agent renews without losing a message; without one, this command renews.
    """
    config = read_config(home)
    use_here(config.key_store)
    renewed = enrollment.renew(config).certificate
    deploy_unless_running(config)
    click.echo(f"Renewed until {shown(renewed.not_after)}, serial {renewed.serial}.")


def _text(data: bytes, where: str) -> str:
    try:
        return without_mark(data).decode("utf-8", "replace")
    except Malformed as error:
        raise click.UsageError(f"{where}: {error}") from error


def _token(token_file: BinaryIO | None, token_env: str | None) -> str:
    if token_file is not None and token_env is not None:
        raise click.UsageError("--token-file and --token-env exclude each other.")
    if token_file is not None:
        name = token_file.name
        if os.fstat(token_file.fileno()).st_mode & 0o077:
            click.echo(f"Warning: {name} is readable by other users. Run: chmod 600 {name}", err=True)
        token = _text(token_file.read(TOKEN_SIZE_MAX), str(name))
    elif token_env is not None:
        # Removed from the environment: the child process that enrolls would expose it in /proc.
        token = os.environ.pop(token_env, "")
        if not token:
            raise click.UsageError(f"The environment variable {token_env} is not set, or empty.")
    elif sys.stdin.isatty():
        token = click.prompt("Token", hide_input=True)
    else:
        token = _text(sys.stdin.buffer.read(TOKEN_SIZE_MAX), "standard input")
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable():
        raise click.UsageError(
            "There is no token. Pass --token-file or --token-env; create one with: fleet token create --device ID."
        )
    return token
