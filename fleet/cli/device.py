"""`fleet device`: register devices, look them up, tag them, suspend and revoke them."""

from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click

from fleet.cli.bulk import Selection, act_by_filter, ids_or_filter, query_of
from fleet.cli.errors import attempting
from fleet.cli.options import client_option, limit_option
from fleet.cli.output import Row, Seen, output_option, print_rows, print_value
from fleet.cli.parameters import DEVICE_ID, FILTER, GROUP, MODEL, TAG, TAG_KEY, TIME, wrong_use
from fleet.cli.several import print_each
from fleet.client.client import Client, path_of
from fleet.domain.device import DeviceFilter, DeviceState
from fleet.domain.device_filter import parse_filter, parse_place
from fleet.domain.tags import Retag, checked_groups, checked_tags

COLUMNS = ("id", "model", "state", "hardware_serial", "created_at", "expires_at", "tags", "groups")
CERTIFICATE = ("serial", "state", "not_before", "not_after", "sha256")
"""What a table shows of each certificate."""


@click.group()
def device() -> None:
    """Devices: register them, look them up, tag them, suspend and revoke them."""


@device.command()
@client_option
@click.argument("device_id", type=DEVICE_ID)
@click.option("--model", required=True, type=MODEL, help="Its model; see: fleet model list")
@click.option("--serial", "hardware_serial", default="", help="The manufacturer's serial number, for its certificates.")
@click.option("--tag", "tags", type=TAG, multiple=True, help="A label to find it by; may be repeated.")
@click.option("--group", "groups", type=GROUP, multiple=True, help="A group that it is in; may be repeated.")
@output_option
def add(
    client: Client,
    device_id: str,
    model: str,
    hardware_serial: str,
    tags: tuple[tuple[str, str], ...],
    groups: tuple[str, ...],
    output: str,
) -> None:
    """Register a device.

    Then DEVICE_ID can be given a token (fleet token create --device DEVICE_ID), or be provisioned by a station.

    \b
    Example:
      fleet device add cam-7 --model cam2 --tag lot=L7 --tag 'site=Oslo East' --group pilot
    """
    with wrong_use():
        labels = {"tags": dict(checked_tags(tags)), "groups": checked_groups(groups)}
    with attempting(f"adding device '{device_id}'"):
        body = {"id": device_id, "model": model, "hardware_serial": hardware_serial, **labels}
        added = client.post("/v1/devices", body)
    print_value(added, output)


@device.command(name="import")
@client_option
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--errors",
    "errors_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where refused rows are listed, as CSV; FILE.errors unless given.",
)
@output_option
def import_(client: Client, file: Path, errors_file: Path | None, output: str) -> None:
    """Register the devices of the manifest FILE, or of standard input when FILE is -.

    FILE is CSV with a line of column names, JSON lines, or a JSON array of objects. Columns: device_id and model; a
    hardware_serial, which its IDevID certificate must contain, or a key_sha256, the SHA-256 of its public key's DER,
    with which a device enrolls without any other proof, or both; tags (in CSV lot=L7;site=Oslo) and groups
    (pilot;canary).

    Rows are independent: one that is refused is listed in the errors file, and the others are taken. The same row again
    changes nothing, so an import that was interrupted is resumed by running it again. A row that differs from what was
    imported before, or has the serial or key of another device, is refused.

    Exit code 1 when a row was refused or could not be read.

    \b
    Examples:
      fleet device import lot-7.csv
      zcat fleet.jsonl.gz | fleet device import - --errors refused.csv
    """
    from fleet.cli.device_import import import_manifest

    import_manifest(client, file, errors_file, output)


@device.command(name="list")
@client_option
@click.option("--model", type=MODEL, help="Only devices of this model.")
@click.option("--state", type=click.Choice([state.value for state in DeviceState]), help="Only devices in this state.")
@click.option("--tag", "tags", type=TAG, multiple=True, help="Only devices with this tag; may be repeated.")
@click.option("--group", type=GROUP, help="Only devices in this group.")
@click.option(
    "--expires-before",
    type=TIME,
    help="Only devices in service whose newest certificate expires before then, the soonest first: 30d or 2026-12-01.",
)
@click.option(
    "--filter",
    "text",
    type=FILTER,
    help="In place of the others, as in the commands that act on many: 'model=cam2 and lot=L7 and expires<30d'.",
)
@click.option("--after", metavar="POSITION", default="", help="Resume after this position, as --limit printed it.")
@limit_option
@output_option
def list_(
    client: Client,
    model: str | None,
    state: str | None,
    tags: tuple[tuple[str, str], ...],
    group: str | None,
    expires_before: datetime | None,
    text: str | None,
    after: str,
    limit: int | None,
    output: str,
) -> None:
    """List devices, all of them unless --limit is given.

    They come by id, or with --expires-before by the expiry of their certificates.

    \b
    Examples:
      fleet device list --model cam2 --state suspended --tag lot=L7
      fleet device list --expires-before 30d -o json
      fleet device list --filter 'lot=L7 and site="Oslo East"'
    """
    if text is not None and (model or state or tags or group or expires_before):
        raise click.UsageError("--filter takes the place of the others: write them into it.")
    with wrong_use():
        where = (
            parse_filter(text, datetime.now(UTC))
            if text is not None
            else DeviceFilter(
                model=model,
                state=DeviceState(state) if state else None,
                tags=tuple(sorted(set(tags))),
                group=group,
                expires_before=expires_before,
            )
        )
        parse_place(after, where)
    with attempting("listing the devices"):
        listing = Seen(client.items("/v1/devices", limit, after=after or None, **query_of(where)))
        print_rows(COLUMNS, listing, output)
    if listing.last is not None and listing.count == limit:
        click.echo(f"There may be more: --after {_position(listing.last, where)}", err=True)


def _position(last: Row, where: DeviceFilter) -> str:
    return f"{last['expires_at']}/{last['id']}" if where.expires_before is not None else str(last["id"])


@device.command()
@client_option
@click.argument("device_ids", type=DEVICE_ID, nargs=-1, required=True, metavar="DEVICE_ID...")
@output_option
def show(client: Client, device_ids: tuple[str, ...], output: str) -> None:
    """Show devices with their certificates, oldest first."""

    def shown(device_id: str) -> Row:
        path = path_of("/v1/devices/{}", device_id)
        return {**client.get(path), "certificates": list(client.items(f"{path}/credentials"))}

    print_each(device_ids, "showing device '{}'", shown, output, _in_short)


def _in_short(shown: Row) -> Row:
    return {**shown, "certificates": [{key: held[key] for key in CERTIFICATE} for held in shown["certificates"]]}


@device.command()
@ids_or_filter
def suspend(selection: Selection) -> None:
    """Refuse devices until they are resumed.

    Name them by DEVICE_ID, or select them with --filter. Live sessions are closed at once; certificates stay valid.

    \b
    Examples:
      fleet device suspend cam-7 --reason 'being repaired'
      fleet device suspend --filter 'lot=L7 and state=active' --dry-run
    """
    _move("suspend", "suspending", selection)


@device.command()
@ids_or_filter
def resume(selection: Selection) -> None:
    """Accept suspended devices again.

    Name them by DEVICE_ID, or select them with --filter.

    \b
    Example:
      fleet device resume --filter 'lot=L7 and state=suspended' --count 12
    """
    _move("resume", "resuming", selection)


@device.command()
@ids_or_filter
def revoke(selection: Selection) -> None:
    """Revoke devices permanently.

    Name them by DEVICE_ID, or select them with --filter. Their certificates are revoked and live sessions closed at
    once.

    This cannot be undone: hardware that is to be used again is registered under a new id. To refuse a device for a
    while, suspend it.

    \b
    Example:
      fleet device revoke cam-7 --reason lost
    """
    _move("revoke", "revoking", selection)


@device.command()
@ids_or_filter
def retire(selection: Selection) -> None:
    """Take devices out of service permanently, as planned.

    Name them by DEVICE_ID, or select them with --filter.

    \b
    Example:
      fleet device retire --filter 'model=cam1' --dry-run
    """
    _move("retire", "retiring", selection)


def _move(verb: str, doing: str, selection: Selection) -> None:
    def moved(device_id: str) -> Row:
        path = path_of("/v1/devices/{}/{}", device_id, verb)
        return dict(selection.client.post(path, {"reason": selection.reason}))

    if selection.text is not None:
        act_by_filter(selection, doing, {"act": verb})
    else:
        print_each(selection.ids, f"{doing} device '{{}}'", moved, selection.output)


@device.command()
@ids_or_filter
@click.option("--remove", multiple=True, type=TAG_KEY, help="A tag to remove; may be repeated.")
@click.option("--group", "join", multiple=True, type=GROUP, help="A group to add it to; may be repeated.")
@click.option("--ungroup", "leave", multiple=True, type=GROUP, help="A group to remove it from; may be repeated.")
def tag(selection: Selection, remove: tuple[str, ...], join: tuple[str, ...], leave: tuple[str, ...]) -> None:
    """Change tags and groups of devices.

    Name them by DEVICE_ID, in front of the tags, or select them with --filter.

    \b
    Examples:
      fleet device tag cam-7 lot=L7 site=Oslo --remove old --group pilot --ungroup canary
      fleet device tag --filter 'lot=L7 and state=active' --group recall
    """
    with wrong_use():
        retag = Retag(selection.tags, remove, join, leave)
    if selection.text is not None:
        tags = {**dict.fromkeys(retag.remove), **dict(retag.tags)}
        act_by_filter(selection, "tagging", {"act": "tag", "tags": tags, "join": join, "leave": leave})
        return
    tagged = partial(_tagged, selection.client, retag, selection.reason)
    print_each(selection.ids, "tagging device '{}'", tagged, selection.output)


def _tagged(client: Client, retag: Retag, reason: str, device_id: str) -> Row:
    """Tags are merged (RFC 7396), groups replaced: these are read first."""
    path = path_of("/v1/devices/{}", device_id)
    changes: dict[str, object] = {"tags": {**dict.fromkeys(retag.remove), **dict(retag.tags)}, "reason": reason}
    etag = "*"
    if retag.join or retag.leave:
        before, etag = client.ask("GET", path)
        changes["groups"] = sorted((set(before["groups"]) - set(retag.leave)) | set(retag.join))
    return dict(client.patch(path, changes, etag))
