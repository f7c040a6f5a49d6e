"""Each answer of an EST server: its error, what is repeated of it, how long it is waited for. No network."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from fleet.est_client import transport
from fleet.est_client.client import DEFAULT_POLICY, REASON_SIZE_MAX, EstClient, Policy
from fleet.est_client.errors import EstBadAnswer, EstBusy, EstError, EstRefused, EstUnreachable
from fleet.est_client.transport import Answer, Request
from fleet.wire.csrattrs import CsrAttributes
from fleet.wire.est import BODY_SIZE_MAX, CERTS_ONLY, encode_body
from tests.certs_only import encode_certs_only
from tests.device_agent.fleet_parts import Authority

Ask = Callable[..., EstClient]


class Line:
    """In place of the network: answers in turn, the last one again and again."""

    def __init__(self) -> None:
        self.answers: list[Answer | Exception] = []
        self.requests: list[Request] = []
        self.timeouts: list[float] = []
        self.pauses: list[float] = []

    def exchange(self, host: str, port: int, context: object, request: Request, timeout_seconds: float) -> Answer:
        self.requests.append(request)
        self.timeouts.append(timeout_seconds)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    line = Line()
    monkeypatch.setattr(transport, "exchange", line.exchange)
    return line


@pytest.fixture
def ask(line: Line, authority: Authority) -> Ask:
    def make(*answers: Answer | Exception, policy: Policy = DEFAULT_POLICY, url: str = "https://h") -> EstClient:
        line.answers = list(answers)
        return EstClient(url, authority.ca_file, policy=policy, pause=line.pauses.append)

    return make


def answer(status: int, body: bytes = b"", content_type: str = "", retry_after: str = "") -> Answer:
    return Answer(status, content_type, retry_after, body)


def said(status: int, text: str, content_type: str = "text/plain; charset=utf-8") -> Answer:
    return answer(status, text.encode(), content_type)


@pytest.mark.parametrize(
    ("status", "kind", "advice"),
    [
        (204, EstBadAnswer, "RFC 7030 defines no such answer"),
        (302, EstBadAnswer, "RFC 7030 defines no such answer"),
        (399, EstBadAnswer, "RFC 7030 defines no such answer"),
        (400, EstRefused, ""),
        (401, EstRefused, "Check the token"),
        (403, EstRefused, "operator"),
        (404, EstRefused, "Check the EST URL"),
        (405, EstRefused, "Check the EST URL"),
        (499, EstRefused, ""),
        (500, EstUnreachable, "try again later"),
        (502, EstUnreachable, "try again later"),
    ],
)
def test_each_status(ask: Ask, status: int, kind: type[EstError], advice: str) -> None:
    with pytest.raises(EstError) as caught:
        ask(answer(status)).cacerts()
    assert type(caught.value) is kind
    assert caught.value.message == f"The EST server refused cacerts ({status})."
    assert advice in caught.value.advice
    assert bool(advice) is bool(caught.value.advice)
    if isinstance(caught.value, EstRefused):
        assert caught.value.status == status


def test_a_reason_is_repeated_instead_of_advice(ask: Ask) -> None:
    with pytest.raises(EstRefused) as caught:
        ask(said(403, "The device is\n suspended.\x1b[31m", "TEXT/plain")).cacerts()
    assert caught.value.message == "The EST server refused cacerts (403): The device is suspended. [31m"
    assert caught.value.advice == ""


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("It is revoked (certificate-revoked)\n", "certificate-revoked"),
        ("x" * 2 * REASON_SIZE_MAX + " (certificate-revoked)\n", "certificate-revoked"),
        ("Not (certificate-revoked), but (certificate-expired)", "certificate-expired"),
        ("A device (certificate-revoked) is told so. Ask.", ""),
        ("no code ()", ""),
        ("(Certificate-Revoked)", ""),
        ("", ""),
    ],
)
def test_the_code_of_a_refusal_is_read_once_however_long_its_sentence(ask: Ask, body: str, code: str) -> None:
    for end in ("", " " * 100):
        with pytest.raises(EstRefused) as caught:
            ask(said(403, body + end)).simplereenroll(b"")
        assert caught.value.reason_code == code
    if body:
        with pytest.raises(EstRefused) as caught:
            ask(said(403, body, "text/html")).cacerts()
        assert caught.value.reason_code == ""


@pytest.mark.parametrize("content_type", ["text/html", "", "application/json", "text/plainer"])
def test_only_plain_text_is_repeated(ask: Ask, content_type: str) -> None:
    with pytest.raises(EstRefused) as caught:
        ask(said(403, "<b>no</b>", content_type)).cacerts()
    assert "<b>" not in caught.value.message
    assert caught.value.advice


def test_a_long_reason_is_cut(ask: Ask) -> None:
    with pytest.raises(EstRefused) as caught:
        ask(said(400, "x" * 5000)).cacerts()
    assert caught.value.message.count("x") == REASON_SIZE_MAX


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        ("7", 7),
        (" 7 ", 7),
        ("0", 1),
        ("", 5),
        ("1.5", 5),
        ("-3", 5),
        ("nan", 5),
        ("inf", 5),
        ("1e9", 5),
        ("\u0667", 5),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 5),
    ],
)
@pytest.mark.parametrize("status", [202, 429, 503])
def test_it_is_asked_again_when_the_server_says(
    ask: Ask, line: Line, authority: Authority, status: int, retry_after: str, seconds: int
) -> None:
    good = answer(200, encode_body(encode_certs_only([authority.root])), CERTS_ONLY)
    assert ask(answer(status, retry_after=retry_after), good).cacerts() == [authority.root]
    assert line.pauses == [seconds]
    assert line.timeouts == [30.0, 30.0]


def test_each_wait_is_reported_with_its_reason(ask: Ask, line: Line) -> None:
    told = list[str]()
    busy = Answer(503, "text/plain", "20", b"The webhook of\n model cam cannot be reached.\x1b[31m")
    with pytest.raises(EstBusy):
        ask(busy, Answer(429, "", "30", b""), busy, policy=Policy(report=told.append)).cacerts()
    assert told == [
        "Waiting for 20 s, as the EST server asks: The webhook of model cam cannot be reached. [31m",
        "Waiting for 30 s, as the EST server asks.",
    ]
    assert line.pauses == [20, 30]


@pytest.mark.parametrize(("status", "pending"), [(202, True), (429, False), (503, False)])
def test_patience_is_the_sum_of_all_waits(ask: Ask, line: Line, status: int, pending: bool) -> None:
    with pytest.raises(EstBusy) as caught:
        ask(answer(status, retry_after="20")).cacerts()
    assert line.pauses == [20, 20, 20]  # sixty seconds, and not one more
    assert (caught.value.retry_after_seconds, caught.value.pending) == (20, pending)
    assert caught.value.message == "The EST server asks to retry after 20 s."


@pytest.mark.parametrize("retry_after", ["86400", "86401", "99999999999", "9" * 400, "9" * 9000])
def test_no_server_puts_a_client_off_for_more_than_a_day(ask: Ask, retry_after: str) -> None:
    with pytest.raises(EstBusy, match=r"retry after 86400 s \(24 h\)") as caught:
        ask(answer(202, retry_after=retry_after)).cacerts()
    assert caught.value.retry_after_seconds == 86400


def test_no_patience_waits_for_nothing(ask: Ask, line: Line) -> None:
    with pytest.raises(EstBusy, match="retry after 1 s: soon"):
        ask(Answer(503, "text/plain", "1", b"soon"), policy=Policy(2.5, 0)).cacerts()
    assert line.pauses == []
    assert line.timeouts == [2.5]


@pytest.mark.parametrize(
    ("failure", "kind", "says"),
    [
        (transport.AnswerTooLarge(), EstBadAnswer, f"larger than {BODY_SIZE_MAX} bytes"),
        (transport.AnswerCutOff(), EstUnreachable, "closed the connection"),
        (TimeoutError("timed out"), EstUnreachable, "within 30 s"),
        (ConnectionRefusedError(111, "Connection refused"), EstUnreachable, "h:443 cannot be reached: .*refused"),
    ],
)
def test_each_failure_of_the_network(ask: Ask, failure: Exception, kind: type[EstError], says: str) -> None:
    with pytest.raises(EstError, match=says) as caught:
        ask(failure).cacerts()
    assert type(caught.value) is kind


@pytest.mark.parametrize("status", [204, 404])
def test_no_csr_attributes(ask: Ask, status: int) -> None:
    assert ask(answer(status)).csrattrs() == CsrAttributes()


def test_csr_attributes_that_cannot_be_read(ask: Ask) -> None:
    with pytest.raises(EstBadAnswer, match="attributes"):
        ask(answer(200, b"!!")).csrattrs()
    with pytest.raises(EstRefused):
        ask(answer(403)).csrattrs()


@pytest.mark.parametrize("content_type", ["", "text/html", "x" * 500])
def test_certificates_come_as_certs_only(ask: Ask, authority: Authority, content_type: str) -> None:
    body = encode_body(encode_certs_only([authority.root]))
    with pytest.raises(EstBadAnswer, match="no certificates") as caught:
        ask(answer(200, body, content_type)).cacerts()
    assert len(caught.value.message) < 200


def test_paths_and_labels(ask: Ask, line: Line) -> None:
    for url, label, path in (
        ("https://h", None, "/.well-known/est/csrattrs"),
        ("https://h", "a/b c", "/.well-known/est/a%2Fb%20c/csrattrs"),
        ("https://h/.well-known/est/acme", None, "/.well-known/est/acme/csrattrs"),
        ("https://h/.well-known/est/acme", "pump", "/.well-known/est/pump/csrattrs"),
    ):
        ask(answer(204), url=url).csrattrs(label)
        assert line.requests[-1].path == path
        assert line.requests[-1].method == "GET"
        assert "Content-Type" not in line.requests[-1].headers


@pytest.mark.parametrize("status", [400, 403, 404, 405, 501])
def test_a_server_without_renewal_information(ask: Ask, status: int) -> None:
    assert ask(answer(status)).renewal_info("ab" * 32) == (None, 0.0)


@pytest.mark.parametrize(("status", "kind"), [(401, EstRefused), (500, EstUnreachable)])
def test_renewal_information_that_is_refused(ask: Ask, status: int, kind: type[EstError]) -> None:
    with pytest.raises(kind):
        ask(answer(status)).renewal_info("ab" * 32)


def test_renewal_information(ask: Ask, line: Line) -> None:
    body = b'{"suggestedWindow": {"start": "2026-03-01T01:00:00+01:00", "end": "2026-03-02T00:00:00Z"}}'
    window, again = ask(answer(200, body, retry_after="3600")).renewal_info("ab" * 32)
    assert window == (datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 2, tzinfo=UTC))
    assert again == 3600
    assert line.requests[0].path == f"/.well-known/est/renewal-info/{'ab' * 32}"
