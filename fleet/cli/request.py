"""`fleet request`: devices that have shown nothing and wait for an operator's word."""

import click

from fleet.cli.desk import Desk, fleet_option
from fleet.cli.errors import attempting
from fleet.cli.output import output_option, print_rows, print_value
from fleet.domain.approval import ApprovalRequest, RequestFilter, RequestState

COLUMNS = ("id", "device", "model", "state", "fingerprint", "address", "asked", "last_seen")


@click.group()
def request() -> None:
    """Devices that wait for approval.

    Where a model admits by `approval` (fleet model set NAME --admit approval), a device that has nothing to show may
    ask all the same, and waits until somebody says yes. Its id, and all that its CSR says, are its own words: compare
    the fingerprint of its key with what the device shows, by another way than this, before you approve it.
    """


@request.command(name="list")
@fleet_option
@click.option("--state", type=click.Choice([s.value for s in RequestState]), help="Only requests in this state.")
@click.option("--model", help="Only requests for this model.")
@click.option("--device", metavar="ID", help="Only requests for this device id.")
@click.option("--after", default="", metavar="ID", help="Start behind this request, as the last page named it.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="At most so many.")
@output_option
def list_(
    desk: Desk, state: str | None, model: str | None, device: str | None, after: str, limit: int, output: str
) -> None:
    """List the requests, by id.

    \b
    Example:
      fleet request list --state pending --model cam2
    """
    where = RequestFilter(RequestState(state) if state else None, model, device)
    with attempting("listing the requests"):
        found = desk.requests(where, after, limit)
    print_rows(
        COLUMNS,
        [(r.id, r.device_id, r.model, r.state, r.fingerprint, r.address, r.asked, r.last_seen) for r in found],
        output,
    )
    if len(found) == limit:
        click.echo(f"There may be more: --after {found[-1].id}", err=True)


@request.command()
@fleet_option
@click.argument("request_id")
@output_option
def show(desk: Desk, request_id: str, output: str) -> None:
    """Show a request with everything that is known of it."""
    with attempting(f"showing request '{request_id}'"):
        found = desk.request(request_id)
    print_value(_shown(found), output)


@request.command()
@fleet_option
@click.argument("request_id")
@click.option("--reason", default="", help="Why, for the audit.")
@output_option
def approve(desk: Desk, request_id: str, reason: str, output: str) -> None:
    """Let the key of this request have one certificate for the device id that it asks for.

    The device fetches it when it asks again. Other requests for the same device id are denied with that.

    \b
    Example:
      fleet request show 91ab0c2d77de0b12     # compare the fingerprint first
      fleet request approve 91ab0c2d77de0b12 --reason 'read out by Kim at the site'
    """
    _decide(desk, "approve", "approving", request_id, reason, output)


@request.command()
@fleet_option
@click.argument("request_id")
@click.option("--reason", default="", help="Why, for the audit.")
@output_option
def deny(desk: Desk, request_id: str, reason: str, output: str) -> None:
    """Give the key of this request no certificate, as long as the request is remembered.

    An approval that the device has not come for yet is taken back.
    """
    _decide(desk, "deny", "denying", request_id, reason, output)


def _decide(desk: Desk, verb: str, doing: str, request_id: str, reason: str, output: str) -> None:
    with attempting(f"{doing} request '{request_id}'"):
        decided = desk.decide_request(verb, request_id, reason)
    print_value(_shown(decided), output)


def _shown(r: ApprovalRequest) -> dict[str, object]:
    return {
        "id": r.id,
        "device": r.device_id,
        "model": r.model,
        "state": r.state,
        "fingerprint": r.fingerprint,
        "key_sha256": r.key_sha256.hex(),
        "key_type": r.key_type,
        "facts": r.facts,
        "address": r.address,
        "asked": r.asked,
        "first_seen": r.first_seen,
        "last_seen": r.last_seen,
        "expires_at": r.expires_at,
        "decided_by": r.decided_by,
        "decided_at": r.decided_at,
        "reason": r.reason,
    }
