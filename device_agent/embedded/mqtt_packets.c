/* MQTT 3.1.1, chapters 2 and 3. */
#include "mqtt_packets.h"

#include <string.h>

static uint16_t u16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

/* 2.2.3: FLEET_OK with the size of the fixed header and the remaining length. */
static int fixed_header(const uint8_t *data, size_t size, size_t *header, size_t *remaining)
{
    unsigned n;

    *remaining = 0;
    for (n = 0; n < 4; n++) {
        if (size < 2u + n)
            return FLEET_MORE;
        *remaining |= (size_t)(data[1 + n] & 0x7F) << 7 * n;
        if (!(data[1 + n] & 0x80)) {
            *header = 2u + n;
            return FLEET_OK;
        }
    }
    return FLEET_BAD_INPUT;
}

static int parse_publish(unsigned flags, struct fleet_span body, size_t remaining, struct fleet_packet *packet)
{
    size_t topic, head, n;

    packet->qos = flags >> 1 & 3;
    if (packet->qos > 1 || (flags == 8)) /* never granted more; [MQTT-3.3.1-2]: no DUP on QoS 0 */
        return FLEET_BAD_INPUT;
    if (body.size < 2)
        return remaining < 2 ? FLEET_BAD_INPUT : FLEET_MORE;
    topic = u16(body.data);
    head = 2 + topic + (packet->qos ? 2 : 0);
    if (topic < 1 || head > remaining || head > FLEET_PACKET_MAX - 5)
        return FLEET_BAD_INPUT;
    if (body.size < head)
        return FLEET_MORE;
    packet->topic.data = body.data + 2;
    packet->topic.size = topic;
    for (n = 0; n < topic; n++) /* [MQTT-3.3.2-2], [MQTT-1.5.3-2] */
        if (packet->topic.data[n] == '+' || packet->topic.data[n] == '#' || packet->topic.data[n] == 0)
            return FLEET_BAD_INPUT;
    if (packet->qos && (packet->id = u16(body.data + 2 + topic)) == 0) /* [MQTT-2.3.1-1] */
        return FLEET_BAD_INPUT;
    packet->payload.data = body.data + head;
    packet->payload.size = body.size - head;
    return FLEET_OK;
}

static int parse_answer(const uint8_t *body, size_t size, struct fleet_packet *packet)
{
    switch (packet->type) {
    case FLEET_CONNACK: /* [MQTT-3.2.2-4]: no session with a refusal */
        packet->code = size == 2 ? body[1] : 0;
        return size == 2 && body[0] <= 1 && !(body[0] && body[1]) ? FLEET_OK : FLEET_BAD_INPUT;
    case FLEET_PUBACK:
        packet->id = size == 2 ? u16(body) : 0;
        return packet->id ? FLEET_OK : FLEET_BAD_INPUT;
    case FLEET_SUBACK: /* one filter was asked for */
        packet->id = size == 3 ? u16(body) : 0;
        packet->code = size == 3 ? body[2] : 0;
        return packet->id && (packet->code <= 1 || packet->code == 0x80) ? FLEET_OK : FLEET_BAD_INPUT;
    case FLEET_PINGRESP:
        return size == 0 ? FLEET_OK : FLEET_BAD_INPUT;
    default:
        return FLEET_BAD_INPUT;
    }
}

int fleet_packet_parse(const uint8_t *data, size_t size, struct fleet_packet *packet, size_t *used)
{
    size_t header, remaining;
    struct fleet_span body;
    unsigned flags;
    int result;

    memset(packet, 0, sizeof *packet);
    *used = 0;
    if (size < 1)
        return FLEET_MORE;
    packet->type = data[0] >> 4;
    flags = data[0] & 15;
    if ((result = fixed_header(data, size, &header, &remaining)))
        return result;
    body.data = data + header;
    body.size = size - header < remaining ? size - header : remaining;
    *used = header + remaining;
    if (packet->type == FLEET_PUBLISH) {
        if ((result = parse_publish(flags, body, remaining, packet)))
            return result;
        if (*used > FLEET_PACKET_MAX)
            return FLEET_TOO_LARGE;
        return body.size == remaining ? FLEET_OK : FLEET_MORE;
    }
    if (flags || remaining > 3) /* [MQTT-2.2.2-2]; no other packet for a client of one filter is longer */
        return FLEET_BAD_INPUT;
    return body.size == remaining ? parse_answer(body.data, remaining, packet) : FLEET_MORE;
}

/* A fixed header with the remaining length in as few bytes as it takes; NULL if the packet does not fit. */
static uint8_t *begin(uint8_t *out, size_t out_max, uint8_t first, size_t remaining)
{
    size_t left = remaining;

    if (remaining > FLEET_PACKET_MAX || out_max < remaining + 5)
        return NULL;
    *out++ = first;
    do {
        *out++ = (uint8_t)((left & 0x7F) | (left > 0x7F ? 0x80 : 0));
        left >>= 7;
    } while (left);
    return out;
}

static uint8_t *put_u16(uint8_t *at, size_t value)
{
    *at++ = (uint8_t)(value >> 8);
    *at++ = (uint8_t)value;
    return at;
}

static uint8_t *put_text(uint8_t *at, const char *text, size_t length)
{
    at = put_u16(at, length);
    memcpy(at, text, length);
    return at + length;
}

size_t fleet_packet_connect(uint8_t *out, size_t out_max, const char *client_id, uint16_t keepalive_seconds)
{
    size_t length = strlen(client_id);
    uint8_t *at = begin(out, out_max, 0x10, 12 + length);

    if (!at)
        return 0;
    at = put_text(at, "MQTT", 4);
    *at++ = 4; /* protocol level */
    *at++ = 0; /* connect flags: the session is kept, so that the server keeps messages while we are away */
    at = put_u16(at, keepalive_seconds);
    at = put_text(at, client_id, length);
    return (size_t)(at - out);
}

size_t fleet_packet_publish(uint8_t *out, size_t out_max, const char *topic, struct fleet_span payload, uint16_t id)
{
    size_t length = strlen(topic), head = 2 + length + (id ? 2 : 0);
    uint8_t *at;

    if (length < 1 || length > FLEET_PACKET_MAX || payload.size > FLEET_PACKET_MAX)
        return 0;
    at = begin(out, out_max, id ? 0x32 : 0x30, head + payload.size); /* with an id: QoS 1 */
    if (!at)
        return 0;
    at = put_text(at, topic, length);
    if (id)
        at = put_u16(at, id);
    if (payload.size)
        memcpy(at, payload.data, payload.size);
    return (size_t)(at - out) + payload.size;
}

size_t fleet_packet_subscribe(uint8_t *out, size_t out_max, const char *filter, uint16_t id)
{
    size_t length = strlen(filter);
    uint8_t *at = length ? begin(out, out_max, 0x82, 5 + length) : NULL;

    if (!at)
        return 0;
    at = put_text(put_u16(at, id), filter, length);
    *at++ = 1; /* QoS 1 */
    return (size_t)(at - out);
}

size_t fleet_packet_puback(uint8_t *out, size_t out_max, uint16_t id)
{
    uint8_t *at = begin(out, out_max, 0x40, 2);

    return at ? (size_t)(put_u16(at, id) - out) : 0;
}

size_t fleet_packet_pingreq(uint8_t *out, size_t out_max)
{
    uint8_t *at = begin(out, out_max, 0xC0, 0);

    return at ? (size_t)(at - out) : 0;
}

size_t fleet_packet_disconnect(uint8_t *out, size_t out_max)
{
    uint8_t *at = begin(out, out_max, 0xE0, 0);

    return at ? (size_t)(at - out) : 0;
}
