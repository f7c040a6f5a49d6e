"""What a client is answered when a request fails: status, stable code, sentence, and when to retry."""

import pytest

from fleet.domain import errors
from fleet.servers.refusals import WIRE_CODES, HttpRefused, refusal_of
from fleet.wire.errors import BadSignature, Malformed, TooLarge, Unsupported, WeakKey, WireError


@pytest.mark.parametrize(
    ("kind", "status", "headers"),
    [
        (errors.Invalid, 400, {}),
        (errors.Unauthenticated, 401, {}),
        (errors.Refused, 403, {}),
        (errors.NotFound, 404, {}),
        (errors.Conflict, 409, {}),
        (errors.Unavailable, 503, {"Retry-After": "10"}),
    ],
)
def test_an_error_of_the_services(kind: type[errors.FleetError], status: int, headers: dict[str, str]) -> None:
    refusal = refusal_of(kind("a-code", "What happened.", "What to do."))
    assert (refusal.status, refusal.code, dict(refusal.headers)) == (status, "a-code", headers)
    assert refusal.message == "What happened. What to do."
    assert refusal_of(kind("a-code", "What happened.")).message == "What happened."
    assert not refusal.is_internal


@pytest.mark.parametrize(("kind", "status"), [(errors.Pending, 202), (errors.TooMany, 429)])
def test_one_that_says_when_to_ask_again(kind: type[errors.Pending | errors.TooMany], status: int) -> None:
    refusal = refusal_of(kind("a-code", "Not yet.", retry_after_seconds=77))
    assert (refusal.status, dict(refusal.headers)) == (status, {"Retry-After": "77"})


def test_the_nearest_class_counts() -> None:
    refusal = refusal_of(errors.Unreachable("it did not answer"))
    assert (refusal.status, refusal.code, dict(refusal.headers)) == (503, "webhook-failed", {"Retry-After": "10"})
    assert "did not answer" not in refusal.message


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        (TooLarge, 413, "too-large"),
        (Malformed, 400, "malformed"),
        (BadSignature, 400, "bad-signature"),
        (WeakKey, 400, "weak-key"),
        (Unsupported, 400, "unsupported"),
    ],
)
def test_an_error_of_the_wire(kind: type[WireError], status: int, code: str) -> None:
    refusal = refusal_of(kind("What is wrong."))
    assert (refusal.status, refusal.code, refusal.message) == (status, code, "What is wrong.")
    assert dict(refusal.headers) == {}
    assert kind in WIRE_CODES


def test_a_form_that_is_refused_has_its_own_status_and_headers() -> None:
    refusal = refusal_of(HttpRefused(405, "method-not-allowed", "POST only.", {"Allow": "POST"}))
    assert (refusal.status, refusal.code, refusal.message) == (405, "method-not-allowed", "POST only.")
    assert dict(refusal.headers) == {"Allow": "POST"}
    assert dict(refusal_of(HttpRefused(404, "no-such-path", "No.")).headers) == {}


@pytest.mark.parametrize("error", [ConnectionResetError("peer"), BrokenPipeError()])
def test_a_lost_connection_is_the_clients(error: ConnectionError) -> None:
    refusal = refusal_of(error)
    assert (refusal.status, refusal.code, refusal.is_internal) == (400, "gone", False)


@pytest.mark.parametrize("error", [KeyError("secret"), OSError(28, "secret"), RuntimeError("secret")])
def test_a_fault_of_ours_is_logged_and_tells_the_client_nothing(error: Exception) -> None:
    refusal = refusal_of(error)
    assert (refusal.status, refusal.code, refusal.is_internal) == (500, "internal", True)
    assert "secret" not in refusal.message
    assert dict(refusal.headers) == {}
