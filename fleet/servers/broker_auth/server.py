"""The server that brokers ask. Whatever goes wrong with a question, its answer is a denial in the broker's own words.

Other answers than those would be no answers: EMQX asks the next authority after any status but 200 and 204.
"""

import binascii
from collections.abc import Callable, Mapping, Sequence

from fleet.servers.broker_auth import emqx, rabbitmq
from fleet.servers.broker_auth.question import BODY_SIZE_MAX, Dialect, Question
from fleet.servers.delegated_auth import SECRET, AuthContext, check_secret
from fleet.servers.http import Exchange, HttpServer, plain_refusal
from fleet.servers.http_connection import HttpLimits
from fleet.servers.http_response import Response
from fleet.servers.refusals import HttpRefused, no_such_path

LIMITS = HttpLimits(
    idle_seconds_max=300.0,  # brokers keep their connections: they are theirs to end
    body_seconds_max=5.0,  # as long as brokers wait for an answer
)


def build_broker_auth_server(
    context: AuthContext, secrets: Callable[[], Sequence[bytes]] = tuple, vhost: str = "/"
) -> HttpServer:
    """The server; a protocol factory. If there are `secrets`, asked for at each request, it must carry one of them."""
    handler = _Handler(context, secrets, {"rabbitmq": rabbitmq.dialect(vhost), "emqx": emqx.DIALECT})
    server = HttpServer("broker_auth", handler.handle, plain_refusal, LIMITS)
    server.adapted = handler.denied
    return server


class _Handler:
    def __init__(
        self, context: AuthContext, secrets: Callable[[], Sequence[bytes]], dialects: Mapping[str, Dialect]
    ) -> None:
        self._context = context
        self._secrets = secrets
        self._dialects = dialects

    async def handle(self, exchange: Exchange) -> Response:
        exchange.event = "http.broker-auth"
        check_secret(_secret_in(exchange), self._secrets(), f"Neither {SECRET} nor Authorization")
        exchange.connection.is_known = True
        broker, question = _parts(exchange)
        dialect = self._dialects.get(broker)
        if dialect is None or question not in dialect.questions:
            raise no_such_path()
        if exchange.request.method != "POST":
            raise HttpRefused(405, "bad-method", "A broker asks with POST.", {"Allow": "POST"})
        for given in exchange.request.headers.getall("Content-Type", ()):
            if given.partition(";")[0].strip().lower() != dialect.media_type:
                raise HttpRefused(415, "bad-content-type", f"The body must be {dialect.media_type}.")
        self._context.must_be_current()
        members = dialect.read(await exchange.body(BODY_SIZE_MAX))
        return await dialect.questions[question](Question(self._context, exchange, members))

    def denied(self, exchange: Exchange, refusal: Response) -> Response:
        """The denial for the broker in whose part of the paths the question is; elsewhere `refusal`."""
        dialect = self._dialects.get(_parts(exchange)[0])
        kept = {name: value for name, value in refusal.headers.items() if name in ("Connection", "X-Error-Code")}
        return refusal if dialect is None else dialect.denial(kept)


def _parts(exchange: Exchange) -> tuple[str, str]:
    """Broker and question in the path, "" where it has another form."""
    _, _, path = exchange.request.path.partition("/")
    broker, _, question = path.partition("/")
    return broker, question


def _secret_in(exchange: Exchange) -> bytes:
    """What the request proves its sender with: a header, or the password of HTTP Basic (RFC 7617), which RabbitMQ takes
    from the URLs of its settings.
    """
    headers = exchange.request.headers
    own, basic = headers.getall(SECRET, ()), headers.getall("Authorization", ())
    if len(own) == 1 and not basic:
        return own[0].encode("utf-8", "surrogateescape")
    scheme, _, value = basic[0].partition(" ") if len(basic) == 1 and not own else ("", "", "")
    if scheme.lower() != "basic":
        return b""
    try:
        return binascii.a2b_base64(value.encode("ascii"), strict_mode=True).partition(b":")[2]
    except ValueError:  # binascii.Error is one, as is UnicodeEncodeError
        return b""
