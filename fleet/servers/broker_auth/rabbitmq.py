"""Questions of RabbitMQ's rabbitmq_auth_backend_http, of its MQTT plugin's clients: user, vhost, resource, topic.

The user is the common name of the certificate that RabbitMQ has verified. Which certificate it was, it does not say.
"""

import re
from collections.abc import Mapping
from functools import partial

from msgspec import structs

from fleet.domain.client_ids import is_own
from fleet.domain.device import DEVICE_ID
from fleet.domain.errors import Refused
from fleet.servers.broker_auth.question import HEADERS, Dialect, Question, address_of
from fleet.servers.http import PLAIN
from fleet.servers.http_response import Response
from fleet.services.admission import Admission
from fleet.services.broker_access import (
    PUBLISH,
    SUBSCRIBE,
    Wish,
    admit_named,
    audit_denial,
    denial,
    must_be_allowed,
)
from fleet.wire import form

EXCHANGE = "amq.topic"  # mqtt.exchange: where messages of MQTT clients are
QUEUE = re.compile(r"mqtt-subscription-(.*)qos[01]", re.DOTALL)
EXCHANGE_PERMISSIONS = frozenset({"read", "write"})
QUEUE_PERMISSIONS = frozenset({"configure", "read", "write"})

_EXTRA = frozenset({"tags"})  # of later releases
_CLIENT = frozenset({"client_id"})
_RESOURCE = frozenset({"username", "vhost", "resource", "name", "permission"})
_VARIABLES = frozenset({"variable_map.username", "variable_map.vhost"})


def dialect(vhost: str) -> Dialect:
    """For devices that may use the virtual host `vhost`, and no other."""
    return Dialect(
        "application/x-www-form-urlencoded",
        form.loads,
        {
            "user": _user,
            "vhost": partial(_vhost, vhost),
            "resource": partial(_resource, vhost),
            "topic": partial(_topic, vhost),
        },
        _answer,
    )


def _answer(headers: Mapping[str, str], word: str = "deny") -> Response:
    # "allow" with anything behind it makes administrators: tags of the management plugin.
    return Response(200, word.encode(), {"Content-Type": PLAIN, **HEADERS, **headers})


def _allowed() -> Response:
    return _answer({}, "allow")


async def _user(question: Question) -> Response:
    if "password" in question.members:
        # With a user name and a password in its CONNECT, a client is not asked for its certificate's name.
        refusal = Refused("password-login", "A device proves itself by its certificate, and not by a password.")
        name = question.members.get("username", "")
        # Users of the broker's own, as that of broker_sessions, log in so; their names are no device's.
        raise await question.refused(name, refusal) if DEVICE_ID.fullmatch(name) else refusal
    question.must_have(frozenset({"username"}), frozenset({"client_id", "vhost"}))
    await _admitted(question, question.members.get("client_id"))
    return _allowed()


async def _vhost(vhost: str, question: Question) -> Response:
    # Here at the latest the client id is bound. A client of AMQP or STOMP has none.
    question.must_have(frozenset({"username", "vhost", "ip", "client_id"}), _EXTRA)
    question.exchange.peer = structs.replace(question.exchange.peer, address=address_of(question.members["ip"]))
    await _must_be(vhost, question)
    await _admitted(question, question.members["client_id"])
    return _allowed()


async def _resource(vhost: str, question: Question) -> Response:
    question.must_have(_RESOURCE, _EXTRA | _CLIENT)
    await _must_be(vhost, question)
    admission = await _admitted(question, question.members.get("client_id"))
    kind, name, permission = (question.members[each] for each in ("resource", "name", "permission"))
    if kind == "exchange":
        is_allowed = name == EXCHANGE and permission in EXCHANGE_PERMISSIONS
    else:
        found = QUEUE.fullmatch(name) if kind == "queue" and permission in QUEUE_PERMISSIONS else None
        is_allowed = found is not None and is_own(admission.device.id, found[1], admission.rules.client_id)
    if not is_allowed:
        raise await _resource_refused(question, admission)
    return _allowed()


async def _topic(vhost: str, question: Question) -> Response:
    question.must_have(_RESOURCE | {"routing_key", "variable_map.client_id"}, _EXTRA | _VARIABLES)
    await _must_be(vhost, question)
    admission = await _admitted(question, question.members["variable_map.client_id"])
    action = {"write": PUBLISH, "read": SUBSCRIBE}.get(question.members["permission"])
    if (question.members["resource"], question.members["name"]) != ("topic", EXCHANGE) or action is None:
        raise await _resource_refused(question, admission)
    context, wish = question.context, Wish(action, topic_of(question.members["routing_key"]))
    await must_be_allowed(context.registry, admission, wish, question.exchange.peer, context.clock())
    return _allowed()


def topic_of(routing_key: str) -> str:
    """The MQTT topic, or topic filter, that a routing key means. RabbitMQ makes `/` and `.` of a topic the same
    character, and `+` and `*`: a topic that has a `.` or a `*` reaches those who may see the one with `/` or `+`, and
    is judged as that.
    """
    return routing_key.replace(".", "/").replace("*", "+")


async def _admitted(question: Question, client_id: str | None) -> Admission:
    context, peer = question.context, question.exchange.peer
    name, now = question.members["username"], context.clock()
    admission = await admit_named(context.registry, name, client_id, peer, context.tenant_of, now)
    question.note(admission)
    return admission


async def _must_be(vhost: str, question: Question) -> None:
    if question.members["vhost"] != vhost:
        message = "Devices may not use this virtual host: see broker_auth.rabbitmq_vhost."
        raise await question.refused(question.members["username"], Refused("resource-not-allowed", message))


async def _resource_refused(question: Question, admission: Admission) -> Refused:
    """The refusal of the resource that is asked about, when it is audited."""
    members, context = question.members, question.context
    refusal = Refused("resource-not-allowed", "A device may use the exchange of MQTT, and its own queues.")
    action = SUBSCRIBE if members["permission"] == "read" else PUBLISH
    detail = {"resource": f"{members['resource']} {members['name']}", "permission": members["permission"]}
    entry = denial(admission, action, refusal.code, detail, question.exchange.peer, context.clock())
    await audit_denial(context.registry, entry)
    return refusal
