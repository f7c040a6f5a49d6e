"""Rules for HTTP requests: what they allow, and every path that two programs might read differently."""

from collections.abc import Sequence
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.domain.errors import Refused
from fleet.domain.http_policy import TARGET_SIZE_MAX, may_request, path_segments


def may(rules: Sequence[str], method: str, target: str) -> bool:
    return may_request(rules, method, target, device="cam-1", model="cam")


@pytest.mark.parametrize(
    ("rule", "method", "target", "allowed"),
    [
        ("GET /v1/a", "GET", "/v1/a", True),
        ("GET /v1/a", "GET", "/v1/a?b=/../c;d%00", True),
        ("GET /v1/a", "HEAD", "/v1/a", False),
        ("GET /v1/a", "GET", "/v1/a/", False),
        ("GET /v1/a", "GET", "/v1/A", False),
        ("GET /v1/a", "GET", "/v1", False),
        ("GET /v1/a/", "GET", "/v1/a/", True),
        ("GET /", "GET", "/", True),
        ("GET,HEAD /v1/*", "HEAD", "/v1/a", True),
        ("GET /v1/*", "GET", "/v1/", False),
        ("GET /v1/*", "GET", "/v1/a/b", False),
        ("GET /v1/*/b", "GET", "/v1/a/b", True),
        ("* /v1/**", "M-SEARCH", "/v1/a/b/c", True),
        ("* /v1/**", "GET", "/v1", True),
        ("* /v1/**", "GET", "/v1/", True),
        ("* /v1/**", "GET", "/v12", False),
        ("* /**", "GET", "/", True),
        ("GET /d/{id}/x", "GET", "/d/cam-1/x", True),
        ("GET /d/{id}/x", "GET", "/d/cam-2/x", False),
        ("GET /d/{model}-{id}", "GET", "/d/cam-cam-1", True),
        ("GET /d/a b/é", "GET", "/d/a%20b/%C3%A9", True),
        ("GET /d/abc", "GET", "/d/%61bc", True),
    ],
)
def test_a_rule(rule: str, method: str, target: str, allowed: bool) -> None:
    assert may([rule], method, target) is allowed


def test_one_of_several_rules_is_enough_and_none_allows_nothing() -> None:
    assert may(["GET /a", "POST /b"], "POST", "/b")
    assert not may(["GET /a", "POST /b"], "POST", "/a")
    assert not may([], "GET", "/a")


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("", "not a path"),
        ("a", "not a path"),
        ("*", "not a path"),
        ("http://api/v1/a", "not a path"),
        ("//api/v1/a", "empty segment"),
        ("/v1//a", "empty segment"),
        ("/v1/a//", "empty segment"),
        ("/v1/a#b", "fragment"),
        ("/v1/./a", "dot segment"),
        ("/v1/../a", "dot segment"),
        ("/v1/..", "dot segment"),
        ("/v1/%2e%2E/a", "dot segment"),
        ("/v1/.%2e/a", "dot segment"),
        ("/v1/a;b", "semicolon"),
        ("/v1/..;/a", "semicolon"),
        ("/v1/a%3Bb", "semicolon"),
        ("/v1/a%2Fb", "slash"),
        ("/v1/a%2fb", "slash"),
        ("/v1/a%5Cb", "backslash"),
        ("/v1/a\\b", "RFC 3986"),
        ("/v1/a%252Fb", "percent sign"),
        ("/v1/a%3Fb", "encoded ?"),
        ("/v1/a%23b", "encoded #"),
        ("/v1/a%00", "control"),
        ("/v1/a%0d%0aX:", "control"),
        ("/v1/a%7f", "control"),
        ("/v1/a%C2%85", "control"),
        ("/v1/a\x00", "RFC 3986"),
        ("/v1/a b", "RFC 3986"),
        ("/v1/a\tb", "RFC 3986"),
        ("/v1/é", "RFC 3986"),
        ("/v1/\udcff", "RFC 3986"),
        ("/v1/%", "RFC 3986"),
        ("/v1/%2", "RFC 3986"),
        ("/v1/%zz", "RFC 3986"),
        ("/v1/%u002e", "RFC 3986"),
        ("/v1/%ff", "not UTF-8"),
        ("/v1/%c0%ae%c0%ae/a", "not UTF-8"),
        ("/v1/%ed%a0%80", "not UTF-8"),
        ("/v1/e%CC%81", "NFC"),
        ("/v1/%EF%BC%8E%EF%BC%8E/a", "dot segment"),
        ("/v1/a%EF%BC%8Fb", "slash"),
        ("/v1/a%EF%BC%85b", "percent sign"),
        ("/" + "a" * TARGET_SIZE_MAX, "longer than"),
    ],
)
def test_a_path_that_could_be_read_as_another_is_refused_whatever_is_allowed(target: str, says: str) -> None:
    with pytest.raises(Refused) as caught:
        may(["* /**"], "GET", target)
    assert caught.value.code == "bad-target"
    assert says in caught.value.message


@pytest.mark.parametrize("method", ["", "get", "GET ", "GET\n", "GÉT", "A" * 33, "-"])
def test_a_method_that_is_none(method: str) -> None:
    with pytest.raises(Refused, match="method"):
        may(["* /**"], method, "/")


@given(st.text(max_size=20))
def test_a_segment_that_is_let_through_is_what_was_encoded(text: str) -> None:
    try:
        encoded = quote(text, safe="")
    except UnicodeEncodeError:
        return
    try:
        read = path_segments(f"/v1/{encoded}")
    except Refused:
        return
    assert read == ("v1", text)
    assert not set(text) & set("/\\%;?#\x00")
