"""Topic policy of a device: what is asked of it, and the answer."""

from typing import Annotated, Literal

from msgspec import Meta

from fleet.domain.members import about
from fleet.domain.policy_explained import Action, Source
from fleet.servers.admin.records.base import DeviceId, Name, Record

TOPIC_SIZE_MAX = 300  # characters; each takes up to 12 bytes of a request line


class PolicyQuery(Record):
    """What the device would send."""

    action: Action
    topic: Annotated[str, Meta(min_length=1, max_length=TOPIC_SIZE_MAX, description="To subscribe: a topic filter.")]
    qos: Annotated[int, Meta(ge=0, le=2)] = 0
    retain: Annotated[Literal["true", "false"], about("Of a message: whether it has RETAIN.")] = "false"
    size: Annotated[int, Meta(ge=0, le=2**28 - 1, description="Bytes of the packet after its fixed header.")] = 0


class PolicyTest(Record):
    """Whether a device may publish or subscribe, by which rule, and what to change."""

    device_id: DeviceId
    model: Name
    action: Action
    topic: str
    allowed: bool
    code: Annotated[str, about("`ok`, or why not.")]
    message: str
    rule: Annotated[str, about("The rule as it is written; empty when no filter grants it.")]
    expanded: Annotated[str, about("The filter with the device's own values.")]
    source: Annotated[
        Source,
        about("Where the rule comes from; `fleet`: whatever the model says."),
    ]
    override: Annotated[str, about("Tag of the model's override that has the rule; empty when none has.")]
    granted_qos: Annotated[int | None, about("QoS that a subscription is granted; null if none.")]
    advice: Annotated[str, about("What to change; empty when it is allowed.")]
