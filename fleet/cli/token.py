"""`fleet token`: one-time tokens for a first enrollment."""

from datetime import timedelta
from pathlib import Path

import click

from fleet.cli.errors import attempting
from fleet.cli.options import FILE, client_option
from fleet.cli.output import Row, output_option, print_value
from fleet.cli.parameters import DEVICE_ID, MODEL, TOKEN_ID, TOKEN_LIFETIME, duration_text
from fleet.cli.records import Records, same
from fleet.cli.token_batch import create_for_each
from fleet.client.client import Client
from fleet.client.tokens import delivered_token
from fleet.config.durable_files import must_be_absent, write_file

COLUMNS = ("id", "device", "model", "uses", "uses_max", "state", "takes_over", "made_by", "created_at", "expires_at")


@click.group()
def token() -> None:
    """One-time tokens: bearer credentials for a first certificate."""


TOKENS = Records(token, TOKEN_ID, COLUMNS)
TOKENS.list("List the tokens, newest first; never their secrets.")
TOKENS.act(
    "revoke",
    """Revoke tokens.

    TOKEN_ID is the part before the dot; `fleet token list` shows it. Certificates that were enrolled with it stay
    valid; revoke their devices.
    """,
    {"state": "revoked"},
    options=same,
)


@token.command()
@client_option
@click.option("--device", type=DEVICE_ID, help="For this registered device alone.")
@click.option(
    "--devices",
    "devices_file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="A token for each device id in FILE (- for standard input), one a line.",
)
@click.option("--model", type=MODEL, help="For devices of this model without a certificate yet, registered or new.")
@click.option("--uses", type=click.IntRange(1), default=1, show_default=True, help="Number of enrollments it allows.")
@click.option("--ttl", type=TOKEN_LIFETIME, default="1h", show_default=True, help="How long it is valid: 15m, 1h, 7d.")
@click.option("--out", type=FILE, help="A file for it, mode 0600.")
@output_option
def create(
    client: Client,
    device: str | None,
    devices_file: Path | None,
    model: str | None,
    uses: int,
    ttl: timedelta,
    out: Path | None,
    output: str,
) -> None:
    """Make a one-time token.

    It is printed, alone on a line, or written into a new file, and cannot be shown again. A token that cannot be
    printed or written is revoked.

    A token for a device also lets a device that was enrolled before enroll a new key, unless an operator with the role
    factory made it: takes_over in `fleet token list`.

    With --devices, each line of the output is DEVICE_ID,TOKEN. Run it again with the same --out to go on where it
    ended: devices that are in that file already are skipped.

    \b
    Examples:
      fleet token create --device cam-7 --out cam-7.token
      fleet token create --model cam2 --uses 500 --ttl 7d
      fleet token create --devices lot-7.txt --ttl 7d --out lot-7.tokens
    """
    if sum(given is not None for given in (device, devices_file, model)) != 1:
        raise click.UsageError("Give one of --device, --devices and --model.")
    terms = {"uses": uses, "ttl_seconds": int(ttl.total_seconds())}
    if devices_file is not None:
        create_for_each(client, devices_file, terms, out, output)
        return
    if out is not None:  # checked before the token is made
        with attempting(f"writing '{out}'"):
            must_be_absent(out)

    whom = f"device '{device}'" if device is not None else f"devices of model '{model}' without a certificate"
    scope = {"device": device} if device is not None else {"model": model}
    with attempting(f"making a token for {whom}"), delivered_token(client, {**scope, **terms}) as made:
        _deliver(made, out, output)
    if out is None and output == "table":
        times = "once" if uses == 1 else f"{uses} times"
        user = "the device id" if device is None else device
        click.echo(
            f"A token for {whom}, valid {times} within {duration_text(ttl)}. It cannot be shown again.\n"
            f"EST clients send it as the HTTP Basic password, with {user} as the user name.",
            err=True,
        )


def _deliver(made: Row, out: Path | None, output: str) -> None:
    if out is not None:
        write_file(out, f"{made['token']}\n".encode(), secret=True)
        print_value({"id": made["id"], "file": str(out), "expires_at": made["expires_at"]}, output)
    elif output == "json":
        print_value({key: made[key] for key in ("id", "token", "expires_at")}, output)
    else:
        click.echo(made["token"])
