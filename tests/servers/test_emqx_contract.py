"""Our answers to EMQX's questions, asked and read as emqx_contract.json says that it does."""

import base64
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fleet.broker_sessions.api import EMQX, opened
from fleet.domain.credential import Credential
from fleet.domain.errors import Unavailable
from tests.broker_sessions.test_broker_sessions import Broker, answering, api_of, response
from tests.servers.test_broker_auth import OPEN, PAGE, SECRET, Answer, House
from tests.servers.test_broker_auth import opened as opened_house

CONTRACT: dict[str, Any] = json.loads((Path(__file__).with_name("emqx_contract.json")).read_text())
REST = CONTRACT["rest"]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with opened_house(tmp_path, SECRET) as house:
        yield house


def body_of(ask: str) -> dict[str, str]:
    """The body that the page configures for a question: members and their placeholders."""
    [shown] = re.findall(r"^```hocon\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    _, _, block = str(shown).partition(f'/emqx/{ask}"')
    [members] = re.findall(r"body \{(.*?)\n? *\}\n", block.partition("request_timeout")[0], re.DOTALL)
    return dict(re.findall(r'(\w+) = "(\$\{\w+\})"', members))


def rendered(ask: str, body: dict[str, str], seen: dict[str, Any]) -> bytes:
    """`body` as EMQX sends it for a client of which it has `seen` this; what it does not know there stays as it is."""
    rules = CONTRACT["placeholders"]

    def text(placeholder: str) -> str:
        name = placeholder[2:-1]
        if name not in rules[ask]:
            return placeholder
        value = seen.get(name, rules["without_value"])
        return str(rules[json.dumps(value)]) if isinstance(value, bool) else str(value)

    return json.dumps({name: text(placeholder) for name, placeholder in body.items()}).encode()


def request(ask: str, body: bytes) -> bytes:
    headers = {"host": "127.0.0.1:9181", **CONTRACT["request"]["headers"], "x-proxy-secret": SECRET.decode()}
    head = (f"POST /emqx/{ask} HTTP/1.1", f"content-length: {len(body)}", *(f"{n}: {v}" for n, v in headers.items()))
    return "\r\n".join((*head, "", "")).encode() + body


def read(answer: Answer) -> str:
    """What EMQX makes of an answer."""
    rules = CONTRACT["answer"]
    if answer.status == rules["allows_without_body"]:
        return "allow"
    if answer.status != rules["with_body"] or not answer.headers["Content-Type"].startswith(rules["content_type"]):
        return str(rules["anything_else"])
    body = json.loads(answer.body)
    if not isinstance(body, dict) or body.get("result") not in rules["results"]:
        return str(rules["anything_else"])
    if body["result"] == "allow" and "expire_at" in body:
        now = datetime.now(UTC).timestamp()
        if type(body["expire_at"]) is not int or not now <= body["expire_at"] <= now * 500:
            return "deny"
    return str(body["result"])


async def test_each_question_has_an_answer_that_it_understands(house: House) -> None:
    one = await house.enroll("cam-1", OPEN)
    for question in CONTRACT["questions"]:
        assert question["from"] in CONTRACT["sources"]
        await is_answered(house, one, question)


async def is_answered(house: House, one: Credential, question: dict[str, Any]) -> None:
    seen = dict(question["seen"])
    if "cert_pem" in seen:
        shown = one.der if seen["cert_pem"] == "cam-1" else seen["cert_pem"].encode()
        seen["cert_pem"] = base64.b64encode(shown).decode()
    ask = question["ask"]
    answer = await house.raw(request(ask, rendered(ask, body_of(ask), seen)))
    assert read(answer) == question["is"], question["about"]
    if ask == "authn" and question["is"] == "allow":
        assert set(answer.json) == {"result", "is_superuser", "expire_at"}
        assert answer.json["is_superuser"] is False
        assert answer.json["expire_at"] == int(one.not_after.timestamp())
        acl = await house.raw(request("authn-acl", rendered(ask, body_of(ask), seen)))
        assert read(acl) == "allow"
        rules = acl.json["acl"]
        assert isinstance(rules, list)
        for rule in rules:
            assert_compiles(rule)


def assert_compiles(rule: dict[str, Any]) -> None:
    allowed = CONTRACT["acl_rule"]
    assert isinstance(rule["topic"], str)
    assert rule["permission"] in allowed["permission"]
    assert rule["action"] in allowed["action"]
    assert all(each in allowed["qos"] for each in rule.get("qos", ()))
    assert rule.get("retain", "all") in allowed["retain"]
    assert rule["action"] != "subscribe" or "retain" not in rule


async def test_whatever_is_wrong_is_a_denial_that_it_understands(house: House) -> None:
    await house.enroll("cam-1", OPEN)
    good = rendered("authn", body_of("authn"), {"clientid": "cam-1"})
    stranger = request("authn", good).replace(SECRET, b"x" * len(SECRET))
    unknown = request("authz", rendered("authz", {"clientid": "${clientid}", "cert_pem": "${cert_pem}"}, {}))
    for raw in (stranger, unknown, request("authn", b"{"), request("authn", b""), request("none", good)):
        assert read(await house.raw(raw)) == "deny", raw
    house.feed = False
    assert read(await house.raw(request("authn", good))) == "deny"


async def test_questions_that_do_not_wait_for_answers_are_answered_in_order(house: House) -> None:
    """EMQX sends up to 100 on a connection before the first is answered."""
    await house.enroll("cam-1", OPEN)
    seen = {"clientid": "cam-1", "cert_common_name": "cam-1", "action": "publish", "qos": "0", "retain": False}
    topics = [f"devices/cam-{1 + number % 2}/up/t" for number in range(CONTRACT["request"]["pipelined"])]
    raw = [request("authz", rendered("authz", body_of("authz"), {**seen, "topic": topic})) for topic in topics]
    async with house.connected() as ask:
        found = [await ask(b"".join(raw))]
        found += [await ask(b"") for _ in topics[1:]]
    assert [read(answer) for answer in found] == ["allow", "deny"] * (len(topics) // 2)


async def test_its_sessions_are_listed_and_ended(tmp_path: Path) -> None:
    """Answers as they are noted: more members than are used, null among them."""

    class Noted(Broker):
        def _good(self, method: str, target: str) -> bytes:
            if method == "DELETE":
                noted = REST["kicked" if target == REST["kicked"]["target"] else "not_there"]
                return response(noted["status"], json.dumps(noted["body"]).encode() if "body" in noted else b"")
            return response(200, json.dumps(REST["list"]["body"]).encode())

    async with answering(broker := Noted("emqx")), opened(api_of(broker, tmp_path)) as sessions:
        assert [page async for page in sessions.names()] == [{"cam-1", "cam-2/app"}]
        assert broker.asked == [f"GET {REST['list']['target']}"]
        await sessions.end("cam-1")
        assert f"DELETE {REST['kicked']['target']}" in broker.asked
        await sessions.end("cam-9")
        assert f"DELETE {REST['not_there']['target']}" in broker.asked
        broker.broken = response(REST["bad_key"]["status"], json.dumps(REST["bad_key"]["body"]).encode())
        with pytest.raises(Unavailable, match="status 401"):
            await sessions.end("cam-1")


def test_the_paths_are_those_of_the_api() -> None:
    assert EMQX.page.format(1) == REST["list"]["target"]
    assert EMQX.end.format("cam-1") == REST["kicked"]["target"]
    assert EMQX.ended == {REST["kicked"]["status"], REST["not_there"]["status"]}
