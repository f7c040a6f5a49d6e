"""`fleet ca check`: what certificates name, fetched and verified as a relying party does."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fleet.cli.errors import attempting
from fleet.cli.options import home_option
from fleet.cli.output import output_option, print_rows

if TYPE_CHECKING:
    from datetime import datetime

    from fleet.home.publication_check import PublishedUrl

COLUMNS = ("what", "url", "ca", "state", "until", "reason")
THREADS_MAX = 8


@click.command()
@home_option("the certificates of its CAs are there")
@output_option
@click.pass_context
def check(context: click.Context, home: Path, output: str) -> None:
    """Fetch everything that the fleet's certificates name, and verify it as a relying party does.

    That is: each CRL (signature, nextUpdate, URL), delta CRL (with its base), the OCSP responder (its delegation,
    signature, nextUpdate), and the CA's certificate; of the server's certificate, of the CAs above it, of what each CA
    would issue now, every shard of its CRL included, and of a thousand certificates in use, which may name former URLs.
    `stale` is what was not renewed in time, `late` a CRL that lacks revocations for longer than it may. Standard error
    says where signing a full CRL takes more than half of `crl.max_delay`.

    Exit codes: 0 all is right (or no certificate names a place), 1 something is stale, late, wrong or unreachable.
    """
    from concurrent.futures import ThreadPoolExecutor
    from datetime import UTC, datetime
    from functools import partial

    from fleet.home.http_fetch import LARGE_SIZE_MAX, fetch_over_http
    from fleet.home.publication_check import check_url, lacks_revocations

    now = datetime.now(UTC)
    with attempting("reading the CAs"):
        urls, slow, lacking = asyncio.run(_to_look_at(home, now))
    with ThreadPoolExecutor(THREADS_MAX) as threads:
        found = list(threads.map(lambda each: check_url(each, fetch_over_http, now), urls))
    whole = partial(fetch_over_http, size_max=LARGE_SIZE_MAX)
    found = [check_url(each.published, whole, now) if each.is_large else each for each in found]  # one by one: memory
    found = [lacks_revocations(each, lacking) for each in found]
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
    for sentence in slow:
        click.echo(sentence, err=True)
    if not rows:
        click.echo("No certificate names a place: set [publish] url in fleet.toml.", err=True)
    context.exit(int(any(each.state != "ok" for each in found)))


async def _to_look_at(path: Path, now: "datetime") -> "tuple[list[PublishedUrl], list[str], dict[bytes, int]]":
    """The URLs; sentences about CRLs that take long; and by CA, how many revocations wait too long for its CRL."""
    from fleet.home.authorities import read_authorities
    from fleet.home.crl_issuing import lacking_crls, slow_crls
    from fleet.home.issued_urls import issued_urls
    from fleet.home.layout import open_home, open_registry
    from fleet.home.publication_check import urls_of

    home = open_home(path)
    authorities, registry = read_authorities(home), await open_registry(home)
    try:
        issued = await issued_urls(home, authorities, registry, now)
        return (
            urls_of(home, authorities, issued),
            await slow_crls(home, registry),
            await lacking_crls(home, registry, now),
        )
    finally:
        await registry.close()
