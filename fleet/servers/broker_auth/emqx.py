"""Questions of EMQX 5's HTTP authenticator and HTTP authorizer.

The authenticator gets the certificate that EMQX has verified, which is checked as at our own gateway, and the
session ends when the certificate does (`expire_at`).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import structs

from fleet.domain.errors import Refused, Unauthenticated
from fleet.domain.topic_policy import RESERVED, TopicPolicy
from fleet.servers.broker_auth.question import HEADERS, Dialect, Question, address_of
from fleet.servers.http_response import Response
from fleet.servers.refusals import HttpRefused
from fleet.services.admission import Admission, admit
from fleet.services.broker_access import PUBLISH, SUBSCRIBE, Wish, admit_named, must_be_allowed
from fleet.wire import strict_json
from fleet.wire.errors import Malformed, WireError
from fleet.wire.forwarded_certificate import from_emqx

_SESSION = frozenset({"clientid", "cert_pem"})
_SHOWN = frozenset({"username", "peerhost", "cert_common_name", "cert_subject"})
_WISH = frozenset({"clientid", "topic", "action", "qos", "retain"})
_FLAGS = {"true": True, "false": False, "": False}  # "" for a subscription
_QOS = {"0": 0, "1": 1, "2": 2}


def read(body: bytes) -> Mapping[str, str]:
    """Members of a JSON object; flags and numbers, which some releases send as such, as texts. Raises: Malformed."""
    given = strict_json.loads(body)
    if not isinstance(given, dict):
        raise Malformed("The body is not a JSON object.")
    return {name: _text(value) for name, value in given.items()}


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int):
        return json.dumps(value)
    raise Malformed("A member of the body is no text.")


def _answer(headers: Mapping[str, str], **members: Any) -> Response:
    body = json.dumps({"result": "deny", **members}, separators=(",", ":")).encode()
    return Response(200, body, {"Content-Type": "application/json", **HEADERS, **headers})


async def _authn(question: Question) -> Response:
    admission = await _session(question)
    return _answer({}, result="allow", is_superuser=False, expire_at=_end_of(admission))


async def _authn_with_acl(question: Question) -> Response:
    admission = await _session(question)
    rules = acl(admission.policy)
    return _answer({}, result="allow", is_superuser=False, expire_at=_end_of(admission), acl=rules)


async def _authz(question: Question) -> Response:
    question.must_have(_WISH, _SHOWN | {"cert_pem"})
    members, context = question.members, question.context
    action = {"publish": PUBLISH, "subscribe": SUBSCRIBE}.get(members["action"])
    if action is None or members["retain"] not in _FLAGS or members["qos"] not in _QOS:
        raise HttpRefused(400, "bad-request", "The question has no action, QoS or retain flag that is known.")
    admission = await _admitted(question)
    wish = Wish(action, members["topic"], _FLAGS[members["retain"]], _QOS[members["qos"]])
    await must_be_allowed(context.registry, admission, wish, question.exchange.peer, context.clock())
    return _answer({}, result="allow")


DIALECT = Dialect("application/json", read, {"authn": _authn, "authn-acl": _authn_with_acl, "authz": _authz}, _answer)


async def _session(question: Question) -> Admission:
    question.must_have(_SESSION, _SHOWN)
    return await _admitted(question, needs_certificate=True)


async def _admitted(question: Question, *, needs_certificate: bool = False) -> Admission:
    """By the certificate, or where a question about a topic has none, by its common name."""
    members, context, now = question.members, question.context, question.context.clock()
    peer = structs.replace(question.exchange.peer, address=address_of(members.get("peerhost", "")))
    question.exchange.peer = peer
    client_id = members["clientid"]
    if not members.get("cert_pem"):
        if needs_certificate:
            refusal = Unauthenticated("no-certificate", "The client presented no certificate to the broker.")
            raise await question.refused(client_id, refusal)
        name = members.get("cert_common_name", "")
        admission = await admit_named(context.registry, name, client_id, peer, context.tenant_of, now)
    else:
        try:
            der = from_emqx(members["cert_pem"])
        except WireError as error:
            question.exchange.reason = f"cert_pem: {error}"
            unreadable = Refused("bad-client-certificate", question.exchange.reason)
            raise await question.refused(client_id, unreadable) from error
        question.exchange.peer = peer = context.peer_with(peer, der)
        admission = await admit(context.registry, peer, client_id, now, maps_client_id=False)
    question.note(admission)
    return admission


def _end_of(admission: Admission) -> int:
    """Seconds since 1970: EMQX ends the session then."""
    return int(admission.credential.not_after.timestamp())


def acl(policy: TopicPolicy) -> Sequence[Mapping[str, object]]:
    """Rules of EMQX for the session's whole life; the first deny what is reserved, the last what no other allows.

    EMQX looks for a filter with wildcards within a rule as if it were a topic, and finds `a/#` within `a/+`. So rules
    name exactly (`eq`) the filters that may be subscribed to; narrower ones are not allowed.
    """
    qos: dict[str, object] = {
        "qos": [each for each in _QOS.values() if not policy.flags_refusal(qos=each, retain=False)]
    }
    retain: dict[str, object] = {} if policy.retain else {"retain": False}
    publish, subscribe = (tuple(filter(_is_plain, each)) for each in (policy.publish, policy.subscribe))
    return [
        *({"permission": "deny", "action": "publish", "topic": each} for each in RESERVED),
        *({"permission": "allow", "action": "publish", "topic": each, **qos, **retain} for each in publish),
        *({"permission": "allow", "action": "subscribe", "topic": f"eq {each}", **qos} for each in subscribe),
        {"permission": "deny", "action": "all", "topic": "#"},
    ]


def _is_plain(topic_filter: str) -> bool:
    """Whether EMQX reads it in a rule as it is meant."""
    return not topic_filter.startswith("eq ") and "${" not in topic_filter
