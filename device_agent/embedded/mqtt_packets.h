/* MQTT 3.1.1: packets of a client, QoS 0 and 1. Nothing here reads from the network. */
#ifndef FLEET_MQTT_PACKETS_H
#define FLEET_MQTT_PACKETS_H

#include "bounds.h"

enum fleet_packet_type {
    FLEET_CONNACK = 2,
    FLEET_PUBLISH = 3,
    FLEET_PUBACK = 4,
    FLEET_SUBACK = 9,
    FLEET_PINGRESP = 13
};

struct fleet_packet {
    unsigned type;
    unsigned qos;  /* of a PUBLISH */
    uint16_t id;   /* 0 if it has none */
    uint8_t code;  /* of a CONNACK or SUBACK */
    struct fleet_span topic, payload; /* in the bytes that were given */
};

/* The packet at the front of `data`. FLEET_OK and its size, FLEET_MORE, or FLEET_BAD_INPUT for what no server may
 * send here. FLEET_TOO_LARGE: a PUBLISH of `used` bytes, more than FLEET_PACKET_MAX; its topic and id are there. */
int fleet_packet_parse(const uint8_t *data, size_t size, struct fleet_packet *packet, size_t *used);

/* Each writes one packet to `out`: its size, or 0 if `out_max` does not hold it. */
size_t fleet_packet_connect(uint8_t *out, size_t out_max, const char *client_id, uint16_t keepalive_seconds);
size_t fleet_packet_publish(uint8_t *out, size_t out_max, const char *topic, struct fleet_span payload, uint16_t id);
size_t fleet_packet_subscribe(uint8_t *out, size_t out_max, const char *filter, uint16_t id);
size_t fleet_packet_puback(uint8_t *out, size_t out_max, uint16_t id);
size_t fleet_packet_pingreq(uint8_t *out, size_t out_max);
size_t fleet_packet_disconnect(uint8_t *out, size_t out_max);

#endif
