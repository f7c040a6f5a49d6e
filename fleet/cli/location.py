"""From where a command's fleet is, at a home or behind a URL, to its client."""

from pathlib import Path

import click
from click.core import ParameterSource

from fleet.client.client import Client


def client_at(
    home: Path | None,
    url: str | None = None,
    cert: Path | None = None,
    key: Path | None = None,
    ca: Path | None = None,
) -> Client:
    """The client of the fleet that the options name. Nothing is opened or read before its first request.

    Raises: click.UsageError.
    """
    if home is not None and url is not None:
        # The command line counts before the environment.
        context = click.get_current_context()
        said = {name for name in ("home", "url") if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
        if len(said) != 1:
            raise click.UsageError("Give --home (or FLEET_HOME) or --url (or FLEET_URL), and not both.")
        home, url = (home, None) if "home" in said else (None, url)
    if home is not None:
        from fleet.client.home import HomeTransport

        return Client(HomeTransport(home), home)
    if url is None:
        raise click.UsageError("Give --home (or FLEET_HOME), or --url (or FLEET_URL) with --cert.")
    if cert is None:
        raise click.UsageError("--url needs your certificate: --cert (or FLEET_CERT).")
    from fleet.client.https import HttpsTransport

    return Client(HttpsTransport(url, cert, key, ca))
