"""`fleet ca check`: what certificates name, fetched and verified as a relying party does."""

from pathlib import Path

import click

from fleet.cli.errors import attempting
from fleet.cli.options import home_option
from fleet.cli.output import output_option, print_rows

COLUMNS = ("what", "url", "ca", "state", "until", "reason")
THREADS_MAX = 8


@click.command()
@home_option("the certificates of its CAs are there")
@output_option
@click.pass_context
def check(context: click.Context, home: Path, output: str) -> None:
    """Fetch everything that the fleet's certificates name, and verify it as a relying party does.

    That is: each CRL (signature, nextUpdate, URL), the OCSP responder (its delegation, signature, nextUpdate), and the
    CA's certificate; of the server's certificate, of the CAs above it, and of what each CA would issue now, every shard
    of its CRL included. `stale` is what was not renewed in time.

    Exit codes: 0 all is right (or no certificate names a place), 1 something is stale, wrong or unreachable.
    """
    from concurrent.futures import ThreadPoolExecutor
    from datetime import UTC, datetime

    from fleet.home.authorities import read_authorities
    from fleet.home.layout import open_home
    from fleet.home.publication_check import check_url, fetch_over_http, urls_of

    with attempting("reading the CAs"):
        opened = open_home(home)
        urls = urls_of(opened, read_authorities(opened))
    now = datetime.now(UTC)
    with ThreadPoolExecutor(THREADS_MAX) as threads:
        found = list(threads.map(lambda each: check_url(each, fetch_over_http, now), urls))
    rows = [
        {
            "what": each.published.kind,
            "url": each.published.url,
            "ca": each.published.issuer.subject.rfc4514_string(),
            "state": each.state,
            "until": each.until,
            "reason": each.reason or None,
        }
        for each in found
    ]
    print_rows(COLUMNS, rows, output)
    if not rows:
        click.echo("No certificate names a place: set [publish] url in fleet.toml.", err=True)
    context.exit(int(any(each.state != "ok" for each in found)))
