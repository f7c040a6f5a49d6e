"""`fleet request`: devices without a credential that wait for approval."""

import sys
from datetime import UTC, datetime

import click

from fleet.cli.bulk import confirm
from fleet.cli.errors import attempting
from fleet.cli.options import client_option, limit_option, reason_option
from fleet.cli.output import Row, Seen, output_option, print_rows, print_value
from fleet.cli.parameters import DEVICE_ID, MODEL, REQUEST_FILTER, REQUEST_ID, ListedRequest
from fleet.cli.records import Records, ids_of, print_each
from fleet.client.client import Client
from fleet.config.streams import EXIT_FAILED
from fleet.domain.approval import DECIDED_FROM, RequestState
from fleet.domain.request_filter import parse_request_filter

_DENY = "/v1/requests/deny"

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
    argument=ids_of(ListedRequest(DECIDED_FROM[RequestState.APPROVED])),
)


@request.command()
@client_option
@click.argument("ids", type=ListedRequest(DECIDED_FROM[RequestState.DENIED]), nargs=-1, metavar="[REQUEST_ID]...")
@reason_option
@click.option(
    "--filter",
    "text",
    type=REQUEST_FILTER,
    help="Every request that matches all terms: 'model=cam2 and address=198.51.100.0/24 and expires<12h'. "
    "Without state, those that wait.",
)
@click.option("--yes", "is_confirmed", is_flag=True, help="With --filter: do not ask for confirmation.")
@click.option("--count", type=click.IntRange(0), metavar="N", help="With --filter: refuse unless N match.")
@click.option("--dry-run", "is_dry", is_flag=True, help="With --filter: list the requests and change nothing.")
@output_option
def deny(
    client: Client,
    ids: tuple[str, ...],
    reason: str,
    text: str | None,
    is_confirmed: bool,
    count: int | None,
    is_dry: bool,
    output: str,
) -> None:
    """Deny requests: their keys are refused for as long as the requests are kept.

    An approval that the device has not used yet is withdrawn.

    \b
    Example:
      fleet request deny --filter 'model=cam2 and address=198.51.100.0/24' --dry-run
    """
    if bool(ids) == (text is not None):
        raise click.UsageError("Give a REQUEST_ID or --filter, one of the two.")
    if text is None:
        if is_confirmed or is_dry or count is not None:
            raise click.UsageError("--yes, --count and --dry-run go with --filter.")

        def ask(each: str) -> Row:
            answer: Row = client.post(f"{REQUESTS.path(each)}/deny", {"reason": reason})
            return answer

        print_each(ids, "denying request '{}'", ask, output)
        return
    with attempting("denying requests"):
        if is_dry:
            _list_selected(client, text, output)
            return
        dry = client.post(_DENY, {"filter": text, "dry_run": True})
        confirm("denying", "request", dry["matched"], text, wanted=count, is_confirmed=is_confirmed)
        _deny_all(client, {"filter": text, "reason": reason, "at": dry["at"]}, dry["matched"], output)


def _list_selected(client: Client, text: str, output: str) -> None:
    selection = parse_request_filter(text, datetime.now(UTC))
    where = selection.where
    state = where.state.value if where.state is not None else None
    found = client.items("/v1/requests", None, state=state, model=where.model, device=where.device_id)
    rows = Seen(row for row in found if selection.takes(row["address"], datetime.fromisoformat(row["expires_at"])))
    print_rows(COLUMNS, rows, output, "There are no such requests.")
    match = "request matches" if rows.count == 1 else "requests match"
    click.echo(f"{rows.count} {match}; nothing was changed.", err=True)


def _deny_all(client: Client, body: Row, matched: int, output: str) -> None:
    done, failed, left = 0, list[str](), matched
    while left:
        step = client.post(_DENY, {**body, "expected": left})
        done, failed, left = done + step["done"], failed + step["failed"], step["left"]
        if failed:
            break  # another operator is at it: look again
    print_value({"matched": matched, "done": done, "failed": failed, "left": left}, output)
    if failed:
        click.echo("Others decided on some meanwhile. Look at the rest and run it again.", err=True)
        sys.exit(EXIT_FAILED)


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
