"""Webhook request and response as JSON. A response must be unambiguous to be accepted."""

import json

from fleet.config.timestamps import rfc3339
from fleet.domain.authorization import Question, Verdict
from fleet.domain.errors import Invalid, Unreachable
from fleet.domain.tags import checked_tags
from fleet.wire import strict_json
from fleet.wire.errors import WireError

ANSWER_SIZE_MAX = 16 * 1024  # 32 tags of 128 characters, four octets each, and a reason
REASON_SIZE_MAX = 200

_MEMBERS = frozenset({"allow", "reason", "attributes"})


def encode_question(question: Question) -> bytes:
    return json.dumps(
        {
            "id": question.id,
            "device": question.device_id,
            "model": question.model,
            "path": question.path,
            "key_type": question.key_type,
            "key_sha256": question.key_sha256.hex(),
            "address": question.address,
            "at": rfc3339(question.at),
        },
        separators=(",", ":"),
    ).encode()


def decode_answer(body: bytes) -> Verdict:
    """`{"allow": true|false, "reason": "…", "attributes": {"key": "value"}}`; only `allow` is required.

    Raises: Unreachable: anything else. Its content is not quoted.
    """
    try:
        answer = strict_json.loads(body)
    except WireError:
        raise Unreachable("its answer is not JSON") from None
    if not isinstance(answer, dict) or not answer.keys() <= _MEMBERS or not isinstance(answer.get("allow"), bool):
        raise Unreachable("its answer is not of the agreed form")
    reason, attributes = answer.get("reason", ""), answer.get("attributes", {})
    if not isinstance(reason, str) or len(reason) > REASON_SIZE_MAX or not reason.isprintable():
        raise Unreachable(f"its reason is not one line of at most {REASON_SIZE_MAX} characters")
    if not isinstance(attributes, dict) or not all(isinstance(value, str) for value in attributes.values()):
        raise Unreachable("its attributes are not texts by name")
    try:
        return Verdict(answer["allow"], reason, checked_tags(attributes.items()))
    except Invalid as error:
        raise Unreachable("its attributes cannot be tags") from error
