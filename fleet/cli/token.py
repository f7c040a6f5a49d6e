"""`fleet token`: one-time tokens for a first enrollment."""

import os
from datetime import timedelta
from pathlib import Path

import click

from fleet.cli.desk import Desk, fleet_option
from fleet.cli.durations import DURATION, duration_text
from fleet.cli.errors import attempting
from fleet.cli.home import utc_now
from fleet.cli.output import output_option, print_rows, print_value
from fleet.cli.output_file import write_file
from fleet.domain.credential import token_state

COLUMNS = ("id", "device", "model", "uses", "uses_max", "state", "created_at", "expires_at")


@click.group()
def token() -> None:
    """One-time tokens: a bearer's right to a first certificate."""


@token.command()
@fleet_option
@click.option("--device", metavar="ID", help="For this registered device alone.")
@click.option(
    "--model", metavar="NAME", help="For devices of this model that have no certificate yet, registered or new."
)
@click.option(
    "--uses", type=click.IntRange(1), default=1, show_default=True, help="How many enrollments it is good for."
)
@click.option("--ttl", type=DURATION, default="1h", show_default=True, help="How long it is good for: 15m, 1h, 7d.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="A new file for it, mode 0600.")
@output_option
def create(
    desk: Desk, device: str | None, model: str | None, uses: int, ttl: timedelta, out: Path | None, output: str
) -> None:
    """Make a one-time token.

    It is printed, alone on a line, or written into a file, and cannot be shown again.

    A token for a device is also how a device that was enrolled before is let in with a new key.

    \b
    Examples:
      fleet token create --device cam-7 --out cam-7.token
      fleet token create --model cam2 --uses 500 --ttl 7d
    """
    if (device is None) == (model is None):
        raise click.UsageError("Give one of --device and --model.")
    if out is not None and os.path.lexists(out):  # looked at first: a token that nobody sees opens doors all the same
        raise click.UsageError(f"{out} exists; nothing was done.")

    whom = f"device '{device}'" if device is not None else f"devices of model '{model}' without a certificate"
    with attempting(f"making a token for {whom}"):
        made, text = desk.create_token(device, model, uses, ttl)
        if out is not None:
            write_file(out, f"{text}\n".encode(), secret=True)
    if out is not None:
        print_value({"id": made.id, "file": str(out), "expires_at": made.expires_at}, output)
        return
    if output == "json":
        print_value({"id": made.id, "token": text, "expires_at": made.expires_at}, output)
        return
    click.echo(text)
    times = "once" if uses == 1 else f"{uses} times"
    user = "the device id" if device is None else device
    click.echo(
        f"A token for {whom}, good {times} within {duration_text(ttl)}. It is not kept and cannot be shown again.\n"
        f"EST clients give it as the HTTP Basic password, with {user} as the user name.",
        err=True,
    )


@token.command(name="list")
@fleet_option
@output_option
def list_(desk: Desk, output: str) -> None:
    """List the tokens, newest first; never their secrets."""
    with attempting("listing the tokens"):
        found = desk.tokens()
    now = utc_now()
    rows = [
        (t.id, t.device_id, t.model, t.uses, t.uses_max, token_state(t, now), t.created_at, t.expires_at) for t in found
    ]
    print_rows(COLUMNS, rows, output)


@token.command()
@fleet_option
@click.argument("token_id")
@output_option
def revoke(desk: Desk, token_id: str, output: str) -> None:
    """Allow no further use of a token.

    TOKEN_ID is the part before the dot; `fleet token list` shows it. Certificates that it has earned
    stay; revoke their devices.
    """
    if "." in token_id:
        raise click.UsageError("Give the id alone, the part before the dot: a secret has no place on a command line.")

    with attempting(f"revoking token '{token_id}'"):
        desk.revoke_token(token_id)
    print_value({"id": token_id, "state": "revoked"}, output)
