"""Lists in pages, cursors, filters; and requests whose form is wrong."""

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509

from fleet.domain.access import Role
from tests.servers.admin_fixtures import AdminHarness, Client, open_admin


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[AdminHarness]:
    async with open_admin(tmp_path) as api:
        yield api


@pytest.fixture
async def admin(api: AdminHarness) -> Client:
    return await api.operator("bob")


async def pages(client: Client, path: str) -> list[list[dict[str, object]]]:
    """The items of each page, from `path` on."""
    found, following = [], path
    while following:
        page = await client.get(following)
        found.append(page["items"])
        following = page["next"]
    return found


class TestPages:
    async def test_every_list_comes_whole_in_pages_of_any_size(self, api: AdminHarness, admin: Client) -> None:
        for n in range(5):
            await admin.ask("POST", "/v1/models", {"name": f"m-{n}"})
            await admin.ask("POST", "/v1/tokens", {"model": "cam"})
            await api.est.station(f"s-{n}")
            await api.est.operator(f"o-{n}")
        for path in ("models", "devices", "tokens", "stations", "operators", "audit", "devices/cam-1/credentials"):
            whole = [item for page in await pages(admin, f"/v1/{path}?limit=1000") for item in page]
            assert whole, path
            for limit in (1, 2, 3):
                found = await pages(admin, f"/v1/{path}?limit={limit}")
                assert all(len(page) <= limit for page in found)
                assert [item for page in found for item in page] == whole, path

    async def test_a_page_names_the_next_in_a_link(self, admin: Client) -> None:
        answer = await admin.send("GET", "/v1/devices?limit=1")
        address = json.loads(answer.body)["next"]
        assert answer.header("Link") == f'<{address}>; rel="next"'
        assert (await admin.send("GET", "/v1/devices")).header("Link") is None

    async def test_held_to_two_models_of_three(self, api: AdminHarness, admin: Client) -> None:
        await admin.ask("POST", "/v1/models", {"name": "valve"})
        for n in range(30):
            await api.est.device(f"d-{n:02}", ("cam", "valve", "pump")[n % 3])
        held = await api.operator("held", Role.VIEWER, ("cam", "pump"))
        expected = [d["id"] for d in (await admin.get("/v1/devices"))["items"] if d["model"] != "valve"]
        for limit in (1, 2, 7, 100):
            found = await pages(held, f"/v1/devices?limit={limit}")
            assert [item["id"] for page in found for item in page] == expected

    async def test_a_page_of_tokens_does_not_tell_of_those_of_others(self, api: AdminHarness, admin: Client) -> None:
        for model in ("pump", "pump", "cam"):
            await admin.ask("POST", "/v1/tokens", {"model": model})
        held = await api.operator("held", Role.VIEWER, ("pump",))
        found = await pages(held, "/v1/tokens?limit=1")  # behind these stands the one that cam-1 has used
        assert [[token["model"] for token in page] for page in found] == [["pump"], ["pump"]]

    async def test_a_cursor_is_not_made_up(self, api: AdminHarness, admin: Client) -> None:
        page = await admin.get("/v1/devices?limit=1")
        cursor = page["next"].partition("cursor=")[2]
        digest = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))[0]

        def made_up(*values: object) -> str:
            return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")

        deep = base64.urlsafe_b64encode(b"[" * 300).decode().rstrip("=")
        bad = (
            "x",
            "A",
            deep,
            made_up(digest),
            made_up(digest, 1, None),
            made_up(digest, "a", "soon"),
            made_up(digest, "\ud800", None),
            made_up(digest, "a\0b", None),
            made_up("", "a"),
        )
        for text in (*bad, made_up(digest, "a", "2030-01-01T00:00:00Z")):
            status, problem = await admin.ask("GET", f"/v1/devices?cursor={text}")
            assert (status, problem["code"]) == (400, "bad-cursor"), text
        for path in (
            "models?",
            "tokens?",
            "audit?",
            "devices?model=cam&",
            "devices?expires_before=2030-01-01T00:00:00Z&",
        ):
            assert (await admin.ask("GET", f"/v1/{path}cursor={cursor}"))[1]["code"] == "bad-cursor", path
        for text in ("x" * 513, "a+b", ""):
            assert (await admin.ask("GET", f"/v1/devices?cursor={text}"))[1]["code"] == "bad-request"


class TestFilters:
    async def test_devices_by_everything(self, api: AdminHarness, admin: Client) -> None:
        for device, tags, groups in (
            ("cam-1", {"site": "essen", "floor": "2"}, ["a"]),
            ("cam-2", {"site": "essen"}, ["a", "b"]),
            ("pump-1", {"site": "köln: süd"}, []),
        ):
            body = {"tags": tags, "groups": groups}
            assert (await admin.ask("PATCH", f"/v1/devices/{device}", body, {"If-Match": "*"}))[0] == 200
        await admin.ask("POST", "/v1/devices/cam-2/suspend")
        for query, expected in (
            ("model=cam", {"cam-1", "cam-2"}),
            ("state=suspended", {"cam-2"}),
            ("tag=site:essen", {"cam-1", "cam-2"}),
            ("tag=site:essen&tag=floor:2", {"cam-1"}),
            ("tag=site:k%C3%B6ln:%20s%C3%BCd", {"pump-1"}),
            ("group=a&model=cam&state=active", {"cam-1"}),
            ("group=b", {"cam-2"}),
            ("expires_before=2999-01-01T00:00:00Z", {"cam-1"}),
            ("expires_before=2026-01-01T00:00:00%2B02:00", set()),
        ):
            items = (await admin.get(f"/v1/devices?{query}"))["items"]
            if query == "group=a&model=cam&state=active":
                expected = {"cam-1"} if any(i["state"] == "active" for i in items) else set()
            assert {item["id"] for item in items} == expected, query

    async def test_soonest_to_expire_first(self, api: AdminHarness, admin: Client) -> None:
        for n in range(4):
            await api.est.enrolled(f"x-{n}")
        path = "/v1/devices?expires_before=2999-01-01T00:00:00Z&limit=2"
        found = [item for page in await pages(admin, path) for item in page]
        ends = [str(item["expires_at"]) for item in found]
        assert len(found) == 5
        assert ends == sorted(ends)

    @pytest.mark.parametrize(
        "query",
        [
            "limit=0",
            "limit=1001",
            "limit=1.5",
            "limit=x",
            "limit=1&limit=2",
            "state=asleep",
            "model=a/b",
            "color=red",
            "tag=site",
            "tag=" + "&tag=".join(["a:b"] * 9),
            "expires_before=tomorrow",
            "expires_before=2026-13-01T00:00:00Z",
            "expires_before=0001-01-01T00:00:00%2B23:59",
            "group=",
        ],
    )
    async def test_a_query_that_means_nothing(self, admin: Client, query: str) -> None:
        status, problem = await admin.ask("GET", f"/v1/devices?{query}")
        assert (status, problem["code"]) == (400, "bad-request")

    async def test_devices_from_behind_an_id(self, admin: Client) -> None:
        assert [d["id"] for d in (await admin.get("/v1/devices?after=cam-1"))["items"]] == ["cam-2", "pump-1"]
        found = await pages(admin, "/v1/devices?after=cam-1&limit=1")
        assert [d["id"] for page in found for d in page] == ["cam-2", "pump-1"]
        both = "after=cam-1&expires_before=2999-01-01T00:00:00Z"
        assert (await admin.ask("GET", f"/v1/devices?{both}"))[1]["code"] == "bad-place"
        ending = "expires_before=2999-01-01T00:00:00Z"
        (soonest,) = (await admin.get(f"/v1/devices?{ending}"))["items"]
        for place, expected in ((f"{soonest['expires_at']}/cam-0", ["cam-1"]), (f"{soonest['expires_at']}/cam-1", [])):
            found = (await admin.get(f"/v1/devices?{ending}&after={place}"))["items"]
            assert [d["id"] for d in found] == expected
        assert (await admin.ask("GET", f"/v1/devices?after={soonest['expires_at']}/cam-1"))[1]["code"] == "bad-place"

    async def test_the_audit_from_behind_a_row(self, admin: Client) -> None:
        page = await admin.get("/v1/audit?after=2&limit=2")
        assert [row["seq"] for row in page["items"]] == [3, 4]
        assert page["last"] >= 4
        assert (await admin.get(f"/v1/audit?after={2**53 - 1}"))["items"] == []


class TestForm:
    @pytest.mark.parametrize(
        "body",
        [
            b"{",
            b"",
            b"\xff",
            b'{"id": "a", "id": "b", "model": "cam"}',
            b'{"id": NaN, "model": "cam"}',
            b'{"id": 1e999, "model": "cam"}',
            b'{"id": "\\ud800", "model": "cam"}',
            b"[" * 17 + b"]" * 17,
            b"[" * 100_000,
            b"1" * 5000,
        ],
        ids=lambda body: repr(body[:40]),
    )
    async def test_what_is_not_json(self, admin: Client, body: bytes) -> None:
        kind = {"Content-Type": "application/json"}
        status, problem = await admin.ask("POST", "/v1/devices", body, kind)
        assert (status, problem["code"]) == (400, "bad-json")

    async def test_brackets_in_a_text_are_no_depth(self, admin: Client) -> None:
        reason = "[" * 100 + '"\\' + "{" * 50
        assert (await admin.ask("POST", "/v1/devices/cam-2/suspend", {"reason": reason}))[0] == 200

    async def test_a_text_without_end_is_looked_through_once(self, admin: Client) -> None:
        # With an end asked for, each quote begins anew, and a body of the largest size stops the server for minutes.
        unended = b'"\\"' + b"[" * 17
        status, problem = await admin.ask("POST", "/v1/devices", unended, {"Content-Type": "application/json"})
        assert (status, problem["detail"]) == (400, "The body is not JSON in UTF-8.")

    async def test_media_types(self, admin: Client) -> None:
        for kind in ("text/plain", "application/xml", "application/jsonx", ""):
            status, problem = await admin.ask("POST", "/v1/models", b'{"name": "x"}', {"Content-Type": kind})
            assert (status, problem["code"]) == (415, "bad-content-type"), kind
        kind = "application/json; charset=utf-8"
        assert (await admin.ask("POST", "/v1/models", b'{"name": "x"}', {"Content-Type": kind}))[0] == 201
        patch = await admin.send("PATCH", "/v1/models/cam", b"{}", {"Content-Type": "text/plain", "If-Match": "*"})
        assert (patch.status, patch.header("Accept-Patch")) == (415, "application/merge-patch+json")
        for accept, expected in (("text/html", 406), ("application/json;q=0, */*;q=0", 406), ("application/*", 200)):
            assert (await admin.ask("GET", "/v1/models", headers={"Accept": accept}))[0] == expected, accept

    async def test_a_body_has_a_cap(self, admin: Client) -> None:
        big = json.dumps({"name": "x", "publish": ["x" * 200_000]}).encode()
        status, problem = await admin.ask("POST", "/v1/models", big)
        assert (status, problem["code"]) == (413, "too-large")

    async def test_methods_and_paths(self, admin: Client) -> None:
        for method, path, status, allow in (
            ("DELETE", "/v1/devices/cam-1", 405, "GET, HEAD, PATCH"),
            ("POST", "/v1/models/cam", 405, "GET, HEAD, PATCH, PUT"),
            ("PUT", "/v1/models", 405, "GET, HEAD, POST"),
            ("GET", "/v1/devices/cam-1/revoke", 405, "POST"),
            ("HEAD", "/v1/devices/cam-1/revoke", 405, "POST"),
            ("GET", "/v1/devices/cam%2F1", 404, None),
            ("GET", "/v1/devices/cam%0a", 404, None),
            ("GET", "/v1/devices/", 404, None),
            ("GET", "/v1/%6dodels", 404, None),
            ("GET", "/v1/devices/../models", 404, None),
            ("GET", "/v1/credentials/XYZ", 404, None),
        ):
            answer = await admin.send(method, path)
            assert (answer.status, answer.header("Allow")) == (status, allow), (method, path)

    async def test_head_is_answered_as_get_is_without_content(self, admin: Client) -> None:
        for path in ("/healthz", "/v1/models", "/v1/models/cam", "/v1/devices/cam-1", "/v1/status", "/v1/devices/none"):
            got, headed = await admin.send("GET", path), await admin.send("HEAD", path)
            assert (headed.status, headed.body) == (got.status, b""), path
            for name in ("Content-Type", "ETag", "Vary", "Cache-Control"):
                assert headed.header(name) == got.header(name), (path, name)
            if path != "/v1/status":  # whose counters go on
                assert headed.header("Content-Length") == got.header("Content-Length"), path
        unchanged = {"If-None-Match": (await admin.send("GET", "/v1/models/cam")).header("ETag") or ""}
        assert (await admin.send("HEAD", "/v1/models/cam", headers=unchanged)).status == 304

    async def test_head_of_the_event_stream_opens_none(self, admin: Client) -> None:
        for _ in range(12):  # more than an operator may follow at once
            answer = await admin.send("HEAD", "/v1/events")
            assert (answer.status, answer.body) == (200, b"")
            assert answer.header("Content-Type") == "text/event-stream"
            assert answer.header("Content-Length") is None


async def test_a_certificate_in_three_forms(api: AdminHarness, admin: Client) -> None:
    certificate = api.device.certificate
    path = f"/v1/credentials/{certificate.serial_number:x}"
    shown = await admin.get(path)
    assert (shown["kind"], shown["holder"]) == ("device", "cam-1")
    assert (await admin.get("/v1/devices/cam-1/credentials"))["items"] == [shown]
    pem = await admin.send("GET", path, headers={"Accept": "application/x-pem-file"})
    assert pem.header("Content-Type") == "application/x-pem-file"
    assert x509.load_pem_x509_certificate(pem.body) == certificate
    der = await admin.send("GET", path, headers={"Accept": "application/json;q=0.5, application/pkix-cert"})
    assert der.header("Vary") == "Accept"
    assert x509.load_der_x509_certificate(der.body) == certificate
    assert (await admin.ask("GET", "/v1/credentials/abc"))[1]["code"] == "no-such-credential"
