"""The parts of AdminApp by themselves, without a listener: headers, conditions, keys, cursors, strict JSON, routes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from fleet.domain.access import Operator, Role
from fleet.domain.changes import AuditEntry, Change
from fleet.domain.idempotency import ANSWER_KEPT
from fleet.domain.peer import Peer
from fleet.domain.tags import GROUPS_MAX
from fleet.domain.writes import DropAnswers, DropRequests, Insert
from fleet.servers.admin.conditions import content_etag, demand_match, if_match, none_match
from fleet.servers.admin.context import Call
from fleet.servers.admin.cursors import page_of_all, paged, position, start_of, unpacked
from fleet.servers.admin.idempotency import KEY_SIZE_MAX, Once, answering, once_of
from fleet.servers.admin.messages import Caller, Headers, Request, body_of
from fleet.servers.admin.reading import acceptable, checked, decode_json, read_query
from fleet.servers.admin.records.base import Changes, Paging, Record
from fleet.servers.admin.records.devices import DeviceChanges, DeviceQuery, NewDevice
from fleet.servers.admin.records.reports import ForecastQuery
from fleet.servers.admin.routing import AccessLevel, Result, find, get
from fleet.servers.admin.sections import all_routes, routes_at
from fleet.servers.refusals import HttpRefused

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
OPERATOR = Operator("bob", Role.ADMIN, NOW)


def call(target: str = "/v1/devices", if_match: frozenset[str] | None = None) -> Call:
    request = Request("GET", target, peer=Peer("192.0.2.1"))
    return Call(request, NOW, Caller("operator bob", OPERATOR), {}, if_match=if_match)


@contextmanager
def refused(code: str) -> Iterator[None]:
    """With the status and code `code`."""
    with pytest.raises(HttpRefused) as caught:
        yield
    assert f"{caught.value.status} {caught.value.code}" == code


class TestHeaders:
    def test_names_without_case_and_every_line_in_order(self) -> None:
        headers = Headers([("If-Match", '"1"'), ("if-match", '"2"'), ("Accept", "text/csv")])
        assert headers["IF-MATCH"] == '"1"'
        assert headers.getall("If-match") == ['"1"', '"2"']
        assert headers.getall("Cookie") == []
        assert headers.get("cookie", "-") == "-"
        assert ("accept" in headers, "cookie" in headers) == (True, False)
        assert (sorted(headers), len(headers)) == (["accept", "if-match"], 2)

    async def test_a_body_is_read_up_to_the_limit_and_not_beyond(self) -> None:
        assert await body_of(b"abc")(3) == b"abc"
        with refused("413 too-large"):
            await body_of(b"abcd")(3)


class TestConditions:
    @pytest.mark.parametrize(
        ("lines", "tags"),
        [
            (['"1"'], {"1"}),
            (['"1", "2"'], {"1", "2"}),
            (['"1"', '"2"'], {"1", "2"}),
            (['W/"1", "2"'], {"2"}),
            (['W/"1"'], set()),
            (['""'], {""}),
            (["*"], None),
            ([" * "], None),
        ],
    )
    def test_if_match(self, lines: list[str], tags: set[str] | None) -> None:
        assert if_match(Headers(("If-Match", line) for line in lines)) == tags

    @pytest.mark.parametrize("line", ["", "1", '"1', '1"', '"1" "2"', '"1",', ',"1"', "**", 'w/"1"', '"a"b"', '"\x7f"'])
    def test_what_is_no_etag(self, line: str) -> None:
        with refused("400 bad-etag"):
            if_match(Headers([("If-Match", line)]))
        with refused("400 bad-etag"):
            none_match(Headers([("If-None-Match", line)]), "1")

    def test_a_change_without_a_condition(self) -> None:
        with refused("428 if-match-needed"):
            if_match(Headers())

    def test_none_match_compares_weakly(self) -> None:
        assert none_match(Headers(), "1") is False
        for line, matches in (('"1"', True), ('W/"1"', True), ("*", True), ('"2"', False), ('"2", "1"', True)):
            assert none_match(Headers([("If-None-Match", line)]), "1") is matches, line

    def test_only_the_revision_that_was_read(self) -> None:
        demand_match(call(if_match=None), 3, "It")
        demand_match(call(if_match=frozenset({"2", "3"})), 3, "It")
        for tags in (frozenset[str](), frozenset({"2"}), frozenset({"33"})):
            with refused("412 changed-meanwhile"):
                demand_match(call(if_match=tags), 3, "It")

    def test_an_etag_of_content_follows_the_content(self) -> None:
        assert content_etag(b"a") == content_etag(b"a") != content_etag(b"b")
        assert len(content_etag(b"a")) == 32


class _Answers:
    """A registry that has answered, or not."""

    def __init__(self, found: Any = None) -> None:
        self.found = found

    async def answer(self, actor: str, key: str) -> Any:
        return self.found

    async def commit(self, change: Change) -> None:
        self.found = change


class TestIdempotency:
    def test_a_key_is_of_one_actor_target_and_body(self) -> None:
        headers = Headers([("Idempotency-Key", "k" * KEY_SIZE_MAX)])
        first = once_of(headers, "operator bob", "POST /v1/devices", b"{}", NOW)
        assert first is not None
        assert (first.actor, first.key, first.now) == ("operator bob", "k" * KEY_SIZE_MAX, NOW)
        again = once_of(headers, "operator bob", "POST /v1/devices", b"{}", NOW)
        others = [
            once_of(headers, "operator bob", "POST /v1/models", b"{}", NOW),
            once_of(headers, "operator bob", "POST /v1/devices", b"{ }", NOW),
            once_of(headers, "operator bob", "POST /v1/devices\0", b"{}", NOW),
        ]
        assert again == first
        assert all(other is not None and other.request_sha256 != first.request_sha256 for other in others)
        assert once_of(Headers(), "operator bob", "POST /v1/devices", b"", NOW) is None

    @pytest.mark.parametrize("keys", [[""], ["a b"], ["k" * (KEY_SIZE_MAX + 1)], ["é"], ["a\n"], ["a", "a"]])
    def test_what_is_no_key(self, keys: list[str]) -> None:
        with refused("400 bad-idempotency-key"):
            once_of(Headers(("Idempotency-Key", key) for key in keys), "operator bob", "POST /", b"", NOW)

    async def test_the_answer_as_it_was_given_for_a_day_and_for_the_same_request(self) -> None:
        once = Once("operator bob", "k", b"x" * 32, NOW)
        given: Result[Any] = Result({"id": "cam-7"}, 201, {"Location": "/v1/devices/cam-7"}, "1")
        answer = once.answered(given)
        assert (answer.actor, answer.key, answer.status, answer.at) == ("operator bob", "k", 201, NOW)
        registry: Any = _Answers(answer)
        assert await once.replay(registry) == given
        assert await once.replay(_Answers()) is None  # type: ignore[arg-type]
        assert await Once("operator bob", "k", b"x" * 32, NOW + ANSWER_KEPT).replay(registry) == given
        late = Once("operator bob", "k", b"x" * 32, NOW + ANSWER_KEPT + timedelta(microseconds=1))
        assert await late.replay(registry) is None
        with refused("422 idempotency-key-reused"):
            await Once("operator bob", "k", b"y" * 32, NOW).replay(registry)

    async def test_the_answer_is_committed_before_the_change_and_with_it(self) -> None:
        once = Once("operator bob", "k", b"x" * 32, NOW)
        registry: Any = _Answers()
        change = Change(AuditEntry(NOW, "operator bob", "device.add", "device cam-7", "ok"), (DropRequests(NOW),))
        result: Result[Any] = Result({"id": "cam-7"}, 201)
        kept = (DropAnswers(NOW - ANSWER_KEPT), Insert(once.answered(result)))
        keeping = answering(registry, once, lambda made: result if made is change else Result())
        await keeping.commit(change)
        assert registry.found == replace(change, writes=(*kept, DropRequests(NOW)))
        await once.keep(registry, result, change.audit)
        assert registry.found == Change(change.audit, kept)
        assert answering(registry, None, lambda _: result) is registry


class TestCursors:
    def test_pages_of_a_list_that_is_read_whole(self) -> None:
        found, seen = ["a", "b", "c", "d", "e"], []
        target: str | None = "/v1/models?limit=2"
        while target is not None:
            query = read_query(target, Paging)
            result = page_of_all(call(target), query, found, str, str.upper)
            seen.append(result.body.items)
            target = result.body.next
            assert result.headers.get("Link", "") == (f'<{target}>; rel="next"' if target is not None else "")
            assert target is None or "limit=2" in target
        assert seen == [["A", "B"], ["C", "D"], ["E"]]

    def test_a_cursor_belongs_to_its_path_and_filters(self) -> None:
        query = DeviceQuery(limit=1, model="cam", tag=["a:b"])
        following = paged(call(), query, ["x"], ["cam-1", None]).body.next
        assert following is not None
        read = read_query(following, DeviceQuery)
        assert (read.model, read.tag, read.limit) == ("cam", ["a:b"], 1)
        kinds = (str, (str, type(None)))
        assert position(call(), read, *kinds) == ["cam-1", None]
        assert position(call(), DeviceQuery(limit=9, model="cam", tag=["a:b"], cursor=read.cursor), *kinds)
        for other in (
            DeviceQuery(model="pump", tag=["a:b"], cursor=read.cursor),
            DeviceQuery(model="cam", cursor=read.cursor),
        ):
            with refused("400 bad-cursor"):
                position(call(), other, *kinds)
        with refused("400 bad-cursor"):
            position(call("/v1/models"), read, *kinds)
        for wrong in ((str,), (str, str), (int, (str, type(None))), (str, str, str)):
            with refused("400 bad-cursor"):
                position(call(), read, *wrong)
        assert position(call(), DeviceQuery(), *kinds) is None

    def test_a_position_that_is_gone_or_unprintable(self) -> None:
        for value in ("z", "a\x00"):
            following = paged(call(), Paging(), ["x"], [value]).body.next
            assert following is not None
            with refused("400 bad-cursor"):
                start_of(call(), read_query(following, Paging), ["a", "b"], str)

    @pytest.mark.parametrize("text", ["", "!", "a", "e30", "IiI", "W" * 400, "bnVsbA"])
    def test_what_was_made_up(self, text: str) -> None:
        with pytest.raises((ValueError, TypeError)):
            unpacked(text)


class TestStrictJson:
    @pytest.mark.parametrize(
        "body",
        [
            b"", b"{", b'{"a":1,"a":1}', b'{"a":{"b":1,"b":2}}', b"NaN", b"[Infinity]", b"1e999", b"[-1e999]",
            b'"\\ud800"', b'{"\\udfff":1}', b"\xff", b'"\xc3"', b"[" * 17 + b"]" * 17, b"[1,]", b"{} x", b"01",
            b"1" * 5000, b'{"a":[' * 9 + b"]}" * 9, "\ufeff{}".encode(),
        ],
    )  # fmt: skip
    def test_refused(self, body: bytes) -> None:
        with refused("400 bad-json"):
            decode_json(body)

    def test_read_as_every_reader_would(self) -> None:
        deep = b"[" * 16 + b"]" * 16
        assert decode_json(deep) == json.loads(deep)
        assert decode_json(b'"[[[[[[[[[[[[[[[[[[[[\\"["') == '[[[[[[[[[[[[[[[[[[[["['
        assert decode_json(b"[" + b"[]," * 40 + b"{}]") == [[]] * 40 + [{}]
        assert decode_json('{"a":"é\\ud83d\\ude00"}'.encode()) == {"a": "é😀"}
        whole, half = decode_json(b"[60.0, 0.5]")
        assert (whole, type(whole), half, type(half)) == (60, int, 0.5, float)


class TestReading:
    @pytest.mark.parametrize(
        ("accept", "best"),
        [
            ([], "a/x"), (["*/*"], "a/x"), (["a/y"], "a/y"), (["a/*"], "a/x"), (["a/x;q=0.4, a/y;q=0.5"], "a/y"),
            (["a/x;q=0.5", "a/y"], "a/y"), (["a/x;q=0, */*"], "a/y"), (["A/Y"], "a/y"), (["a/y;q=x, a/x;q=0.1"], "a/x"),
            (["a/*;q=0.1, a/y;q=0.2"], "a/y"), (["a/x;q=9, a/y"], "a/x"), ([" , "], "a/x"),
        ],
    )  # fmt: skip
    def test_the_media_type_that_the_client_prefers(self, accept: list[str], best: str) -> None:
        assert acceptable(accept, ("a/x", "a/y")) == best

    @pytest.mark.parametrize("accept", [["b/x"], ["a/x;q=0"], ["*/*;q=0"], ["a/x;q=-1"], ["b/*"]])
    def test_none_of_what_is_offered(self, accept: list[str]) -> None:
        with refused("406 not-acceptable"):
            acceptable(accept, ("a/x",))

    def test_an_error_names_the_member_and_repeats_nothing_long_or_unprintable(self) -> None:
        for value, said in (
            ({"id": "cam-7", "model": "m", "tags": {"site": 5}}, "The body: tags[...]: Expected 'str', got 'int'."),
            ({"model": "m"}, "The body: Object missing required field 'id'."),
            ([], "The body: Expected 'object', got 'array'."),
            (
                {"id": "cam-7", "model": "m", "groups": ["g"] * 99},
                f"The body: groups must have at most {GROUPS_MAX} items.",
            ),
        ):
            with pytest.raises(HttpRefused) as caught:
                checked(value, NewDevice, "The body")
            assert caught.value.message == said
        with pytest.raises(HttpRefused) as caught:
            checked({"id": "cam-7", "model": "m", "\x1b[31m" + "x" * 9999: 1}, NewDevice, "The body")
        assert caught.value.message.isprintable()
        assert len(caught.value.message) <= 301

    def test_numbers_of_a_query_have_one_spelling(self) -> None:
        assert read_query("/v1/forecast?weeks=5&cliff_percent=2.5e1", ForecastQuery) == ForecastQuery(5, 25.0)
        for text in ("weeks=05", "weeks=%2B5", "weeks=5_0", "weeks=5.0", "cliff_percent=nan", "cliff_percent=.5"):
            with refused("400 bad-request"):
                read_query(f"/v1/forecast?{text}", ForecastQuery)
        with pytest.raises(HttpRefused) as caught:
            read_query("/v1/forecast?weeks=0", ForecastQuery)
        assert caught.value.message == "The query: weeks must be at least 1."
        with pytest.raises(HttpRefused) as caught:
            read_query("/v1/devices?state=asleep", DeviceQuery)
        assert (
            caught.value.message == "The query: state must be one of registered, active, suspended, revoked, retired."
        )
        with pytest.raises(HttpRefused) as caught:
            read_query("/v1/devices?model=%21", DeviceQuery)
        assert caught.value.message == "The query: model must match ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$."
        with pytest.raises(HttpRefused) as caught:
            checked({"id": "x", "model": "m", "hardware_serial": "é"}, NewDevice, "The body")
        assert caught.value.message == "The body: hardware_serial must match ^[A-Za-z0-9 '()+,\\-./:=?]{0,64}$."
        with refused("400 bad-request"):
            read_query("/v1/whoami?color=red", None)
        assert read_query("/v1/whoami", None) is None

    def test_a_merge_patch_changes_something(self) -> None:
        assert issubclass(DeviceChanges, Changes)
        assert checked({"groups": []}, DeviceChanges, "The body").groups == []
        with refused("400 bad-request"):
            checked({}, DeviceChanges, "The body")

    def test_a_record_is_made_of_attributes_and_of_what_is_given(self) -> None:
        class Named(Record):
            name: str
            role: Role

        assert Named.of(OPERATOR) == Named("bob", Role.ADMIN)
        assert Named.of(OPERATOR, name="eve") == Named("eve", Role.ADMIN)


class TestRoutes:
    def test_every_route_is_found_by_its_path(self) -> None:
        for route in all_routes():
            assert route in routes_at(route.template), route.name
        assert (
            sum(len(routes_at(f"/v1/{section}")) for section in {r.template.split("/")[2] for r in all_routes()[1:]})
            > 0
        )

    @pytest.mark.parametrize(
        "path",
        ["", "/", "/v1", "/v1/", "/v1/device", "/v2/devices", "/v1/devices/", "/v1/devices/a/b", "/v1/devices/a%0A",
         "/v1/%64evices", "//v1/devices", "/v1/v1/devices", "/v1/healthz", "/devices", "/v1/devices/a%2Fb"],
    )  # fmt: skip
    def test_a_path_that_is_none(self, path: str) -> None:
        with refused("404 no-such-path"):
            find(routes_at(path), "GET", path)

    def test_methods_that_a_path_does_not_take(self) -> None:
        with pytest.raises(HttpRefused) as caught:
            find(all_routes(), "DELETE", "/v1/models/cam")
        assert (caught.value.status, caught.value.headers) == (405, {"Allow": "GET, HEAD, PATCH, PUT"})
        for method in ("GET", "HEAD"):
            route, values = find(all_routes(), method, "/v1/devices/a%3Ab")
            assert (route.name, values) == ("get_device", {"id": "a:b"})

    async def test_a_route_without_a_handler_is_denied(self) -> None:
        with refused("404 no-such-path"):
            await get("/v1/new", AccessLevel.ANYBODY, "New.").handle(None, None)
