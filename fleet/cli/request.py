"""`fleet request`: devices without a credential that wait for approval."""

import click

from fleet.cli.errors import attempting
from fleet.cli.options import client_option, limit_option
from fleet.cli.output import Seen, output_option, print_rows
from fleet.cli.parameters import DEVICE_ID, MODEL, REQUEST_ID, ListedRequest
from fleet.cli.records import Records
from fleet.client.client import Client
from fleet.domain.approval import DECIDED_FROM, RequestState

COLUMNS = ("id", "device", "model", "state", "fingerprint", "address", "asked", "last_seen")


@click.group()
def request() -> None:
    """Devices that wait for approval.

    Where a model admits by `approval` (fleet model set NAME --admit approval), an unauthenticated device may request
    a first certificate and waits until an operator approves it. Its id and its CSR are claims that nothing proves:
    compare the fingerprint of its key with the one the device shows, over another channel, before you approve.
    """


REQUESTS = Records(request, REQUEST_ID, COLUMNS)
REQUESTS.show("Show requests with everything that is known of them.")
REQUESTS.act(
    "approve",
    """Approve requests: each key may get one certificate for the device id requested.

    The device fetches it with its next attempt. Other requests for the same device id are denied.

    \b
    Example:
      fleet request show 91ab0c2d77de0b12     # compare the fingerprint first
      fleet request approve 91ab0c2d77de0b12 --reason 'read out by Kim on site'
    """,
    offers=ListedRequest(DECIDED_FROM[RequestState.APPROVED]),
)
REQUESTS.act(
    "deny",
    """Deny requests: their keys are refused for as long as the requests are kept.

    An approval that the device has not used yet is withdrawn.
    """,
    offers=ListedRequest(DECIDED_FROM[RequestState.DENIED]),
)


@request.command(name="list")
@client_option
@click.option("--state", type=click.Choice([state.value for state in RequestState]), help="Only those in this state.")
@click.option("--model", type=MODEL, help="Only requests for this model.")
@click.option("--device", type=DEVICE_ID, help="Only requests for this device id.")
@click.option("--after", type=REQUEST_ID, help="Resume after this request, as --limit printed it.")
@limit_option
@output_option
def list_(client: Client, after: str | None, limit: int | None, output: str, **where: str | None) -> None:
    """List the requests, by id.

    \b
    Example:
      fleet request list --state pending --model cam2
    """
    with attempting("listing the requests"):
        requests = client.items("/v1/requests", None, **where)
        rows = Seen((each for each in requests if each["id"] > (after or "")), limit)
        print_rows(COLUMNS, rows, output)
    if rows.last is not None and rows.count == limit:
        click.echo(f"There may be more: --after {rows.last['id']}", err=True)
