"""URL of an EST server (RFC 7030, 3.2.2)."""

from urllib.parse import unquote, urlsplit

from fleet.est_client.errors import BadConfig
from fleet.wire import est


def parse_est_url(url: str) -> tuple[str, int, str]:
    """Host, port and label of an EST server's URL; the label is "" if there is none.

    Raises: BadConfig.
    """
    advice = "Write it as https://HOST:PORT, or https://HOST:PORT/.well-known/est/LABEL."
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 443
        url.encode(), (host or "").encode("idna")
    except ValueError as error:
        raise BadConfig(f"{url!r} is not an EST server's URL.", advice) from error
    if parts.scheme != "https" or not host or parts.username or parts.query or parts.fragment:
        raise BadConfig(f"{url!r} is not an EST server's URL.", advice)
    path = parts.path.rstrip("/")
    label = path.removeprefix(f"{est.WELL_KNOWN}/") if path.startswith(f"{est.WELL_KNOWN}/") else ""
    # RFC 7030, 3.2.2: a label is never equal to an operation.
    if (path not in ("", est.WELL_KNOWN) and not label) or "/" in label or label in est.OPERATIONS:
        raise BadConfig(f"{url!r} has a path that EST does not use.", advice)
    return host, port, unquote(label)
