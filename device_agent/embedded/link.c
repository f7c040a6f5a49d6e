/* The MQTT connection: CONNECT that proves a slot, messages both ways, keep-alive. */
#include <string.h>

#include "agent.h"
#include "crypto.h"
#include "port.h"

static uint32_t left_of(uint32_t began, uint32_t wait_ms)
{
    uint32_t passed = fleet_port_ticks_ms() - began;

    return passed < wait_ms ? wait_ms - passed : 0;
}

static int lost(struct fleet_agent *agent, int result)
{
    fleet_tls_close();
    agent->is_connected = 0;
    return result;
}

static int transmit(struct fleet_agent *agent, size_t size)
{
    int result = size ? fleet_tls_write(agent->packet, size, FLEET_MQTT_MS) : FLEET_WRONG_USE;

    agent->sent_at = fleet_port_ticks_ms();
    return result;
}

static int handle(struct fleet_agent *agent, const struct fleet_packet *packet)
{
    const struct fleet_config *config = agent->config;

    if (!agent->is_connected && packet->type != FLEET_CONNACK) /* [MQTT-3.2.0-1] */
        return FLEET_BAD_INPUT;
    if (packet->type == FLEET_PINGRESP)
        agent->awaits_pong = 0;
    if (packet->type != FLEET_PUBLISH)
        return FLEET_OK;
    if (agent->skip)
        agent->messages_dropped++;
    else if (config->on_message)
        config->on_message(config->context, packet->topic, packet->payload);
    if (!packet->qos)
        return FLEET_OK;
    return transmit(agent, fleet_packet_puback(agent->packet, sizeof agent->packet, packet->id));
}

static void drop_front(struct fleet_agent *agent, size_t size)
{
    agent->received -= size;
    memmove(agent->answer, agent->answer + size, agent->received);
}

/* The next packet, handled; FLEET_MORE if none came in time. `packet` has no topic or payload any more. */
static int next_packet(struct fleet_agent *agent, uint32_t wait_ms, struct fleet_packet *packet)
{
    uint32_t began = fleet_port_ticks_ms();
    size_t used, got, part;
    int result;

    for (;;) {
        if (agent->skip) { /* the rest of a message that is too large */
            part = agent->skip < agent->received ? agent->skip : agent->received;
            drop_front(agent, part);
            agent->skip -= part;
        }
        result = agent->skip ? FLEET_MORE : fleet_packet_parse(agent->answer, agent->received, packet, &used);
        if (result == FLEET_TOO_LARGE)
            agent->skip = used;
        if (result == FLEET_TOO_LARGE || !result) {
            result = handle(agent, packet);
            if (!agent->skip)
                drop_front(agent, used);
            packet->topic.size = packet->payload.size = 0;
            return result;
        }
        if (result != FLEET_MORE)
            return result;
        result = fleet_tls_read(agent->answer + agent->received, sizeof agent->answer - agent->received,
                                left_of(began, wait_ms), &got);
        if (result)
            return result;
        agent->received += got;
    }
}

/* Waits for one answer; messages that come before it are delivered. */
static int answer_of(struct fleet_agent *agent, unsigned type, uint16_t id, struct fleet_packet *packet)
{
    uint32_t began = fleet_port_ticks_ms();
    int result;

    do {
        result = next_packet(agent, left_of(began, FLEET_MQTT_MS), packet);
        if (result)
            return result == FLEET_MORE ? FLEET_NETWORK : result;
        if (packet->type == type && packet->id == id)
            return FLEET_OK;
        if (packet->type == FLEET_CONNACK)
            return FLEET_BAD_INPUT;
    } while (left_of(began, FLEET_MQTT_MS));
    return FLEET_NETWORK;
}

static int connect_by(struct fleet_agent *agent, int slot)
{
    const struct fleet_config *config = agent->config;
    struct fleet_packet packet;
    int result = fleet_slots_read(slot, &agent->identity);

    if (!result)
        result = fleet_tls_open(config->mqtt_host, config->mqtt_port, config->anchors, &agent->identity, FLEET_MQTT_MS);
    fleet_wipe(&agent->identity, sizeof agent->identity);
    if (result)
        return result;
    agent->received = agent->skip = 0;
    agent->awaits_pong = 0;
    result = transmit(agent, fleet_packet_connect(agent->packet, sizeof agent->packet, config->device_id,
                                                  FLEET_KEEPALIVE_SECONDS));
    if (!result)
        result = answer_of(agent, FLEET_CONNACK, 0, &packet);
    if (!result && packet.code) /* 3.2.2.3: 3 is "unavailable"; the others are about us */
        result = packet.code == 3 ? FLEET_BUSY : FLEET_REFUSED;
    if (result)
        return lost(agent, result);
    agent->is_connected = 1;
    return FLEET_OK;
}

/* Erases the slot that a connection by the other one has replaced. */
static int replaced(struct fleet_agent *agent, int slot)
{
    agent->leftover = fleet_slots_erase(slot) ? slot + 1 : 0;
    return FLEET_OK;
}

int fleet_agent_connect(struct fleet_agent *agent)
{
    int current, candidate, result, refused = 0;

    fleet_agent_disconnect(agent);
    result = fleet_slots_find(&current, &candidate, &agent->identity);
    if (current < 0)
        return result ? result : FLEET_NOT_ENROLLED;
    if (candidate >= 0) {
        result = connect_by(agent, candidate);
        if (!result) /* proven: only now is its predecessor not needed any more */
            return replaced(agent, current);
        refused = result == FLEET_REFUSED;
        /* The one in use may be refused because the server has seen the other: it is tried in turn, for ever. */
    }
    result = connect_by(agent, current);
    if (!result && refused) /* the server takes the old one and not the new one, which stands in the way of another */
        return replaced(agent, candidate);
    return result;
}

void fleet_agent_disconnect(struct fleet_agent *agent)
{
    if (!agent->is_connected)
        return;
    transmit(agent, fleet_packet_disconnect(agent->packet, sizeof agent->packet));
    lost(agent, FLEET_OK);
}

static uint16_t next_id(struct fleet_agent *agent)
{
    if (++agent->packet_id == 0)
        agent->packet_id = 1;
    return agent->packet_id;
}

/* Sends the packet of `size` bytes that has been built, 0 for one that cannot be, and waits for its answer. */
static int asked(struct fleet_agent *agent, size_t size, unsigned type, uint16_t id, struct fleet_packet *answer)
{
    int result;

    if (!size)
        return FLEET_WRONG_USE;
    if (!agent->is_connected)
        return FLEET_NETWORK;
    result = transmit(agent, size);
    if (!result)
        result = answer_of(agent, type, id, answer);
    return result ? lost(agent, result) : FLEET_OK;
}

int fleet_agent_publish(struct fleet_agent *agent, const char *topic, struct fleet_span payload)
{
    uint16_t id = next_id(agent);
    struct fleet_packet answer;
    size_t size = fleet_packet_publish(agent->packet, sizeof agent->packet, topic, payload, id);

    return asked(agent, size, FLEET_PUBACK, id, &answer);
}

int fleet_agent_subscribe(struct fleet_agent *agent, const char *filter)
{
    uint16_t id = next_id(agent);
    struct fleet_packet answer;
    size_t size = fleet_packet_subscribe(agent->packet, sizeof agent->packet, filter, id);
    int result = asked(agent, size, FLEET_SUBACK, id, &answer);

    return !result && answer.code == 0x80 ? FLEET_REFUSED : result;
}

int fleet_agent_poll(struct fleet_agent *agent, uint32_t wait_ms)
{
    uint32_t silent = fleet_port_ticks_ms() - agent->sent_at, half = FLEET_KEEPALIVE_SECONDS * 500u;
    struct fleet_packet packet;
    int result;

    if (!agent->is_connected)
        return FLEET_NETWORK;
    if (agent->awaits_pong && fleet_port_ticks_ms() - agent->pinged_at > FLEET_MQTT_MS)
        return lost(agent, FLEET_NETWORK);
    if (!agent->awaits_pong && silent >= half) {
        result = transmit(agent, fleet_packet_pingreq(agent->packet, sizeof agent->packet));
        if (result)
            return lost(agent, result);
        agent->awaits_pong = 1;
        agent->pinged_at = fleet_port_ticks_ms();
    }
    result = next_packet(agent, wait_ms < half ? wait_ms : half, &packet);
    return result && result != FLEET_MORE ? lost(agent, result) : FLEET_OK;
}
