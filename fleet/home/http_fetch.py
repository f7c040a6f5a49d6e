"""Files and OCSP answers fetched over HTTP from places that anybody may answer for: bounded in size and time."""

import http.client
import threading
import time
import urllib.error
import urllib.request
from email.message import Message
from typing import IO
from urllib.parse import urlsplit

STEP_SECONDS_MAX = 10.0  # connecting, or the next bytes
FETCH_SECONDS_MAX = 60.0  # everything: 64 MB at 10 Mbit/s
SIZE_MAX = 1024 * 1024  # what may be fetched several at once
LARGE_SIZE_MAX = 64 * SIZE_MAX  # a CRL of a million certificates has 40 MB
_CHUNK = 64 * 1024


class TooLarge(OSError):
    """It is larger than the caller takes."""


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows a redirect to the same host by HTTP alone: the fleet's network is not for what a URL names to explore."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        if after.scheme not in ("http", "https") or after.hostname != before.hostname:
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def fetch_over_http(
    url: str, body: bytes | None, *, size_max: int = SIZE_MAX, seconds_max: float = FETCH_SECONDS_MAX
) -> bytes:
    """What `url` answers, to a POST of an OCSP request where one is given.

    Raises: OSError, TooLarge among them.
    """
    found: list[bytes | BaseException] = []

    def work() -> None:
        try:
            found.append(_fetched(url, body, size_max, time.monotonic() + seconds_max))
        except BaseException as error:
            found.append(error)

    # Of what comes byte by byte, the name's lookup and the head have no deadline as a whole: they are left behind.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds_max)
    result = found[0] if found else _late(seconds_max)
    if isinstance(result, BaseException):
        raise result
    return result


def _late(seconds: float) -> OSError:
    return OSError(None, f"it has not answered in full within {seconds:g} s")


def _fetched(url: str, body: bytes | None, size_max: int, until: float) -> bytes:
    headers = {"Content-Type": "application/ocsp-request"} if body is not None else {}
    data = bytearray()
    try:
        request = urllib.request.Request(url, data=body, headers=headers)  # noqa: S310  http and https alone get here
        with urllib.request.build_opener(_SameHost).open(request, timeout=STEP_SECONDS_MAX) as answer:
            while chunk := answer.read1(_CHUNK):
                data += chunk
                if len(data) > size_max:
                    raise TooLarge(None, f"it is larger than {size_max} bytes")
                if time.monotonic() > until:
                    raise OSError(None, "it takes too long")  # to nobody any more
    except urllib.error.HTTPError as error:
        raise OSError(None, f"HTTP {error.code}") from error
    except http.client.InvalidURL as error:
        raise OSError(None, "the URL is not valid") from error
    except http.client.HTTPException as error:
        raise OSError(None, "it does not answer as HTTP does") from error
    return bytes(data)
