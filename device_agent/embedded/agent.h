/* The device's agent: enrolls, renews, connects, publishes, subscribes. No threads: the firmware's loop calls it. */
#ifndef FLEET_AGENT_H
#define FLEET_AGENT_H

#include "bounds.h"
#include "mqtt_packets.h"
#include "slots.h"

struct fleet_config {
    const char *device_id;
    const char *est_host, *mqtt_host; /* DNS names, as in the servers' certificates */
    uint16_t est_port, mqtt_port;
    const char *est_label;     /* "" for none; else a part of the EST path */
    struct fleet_span anchors; /* PEM, its NUL counted, or one certificate in DER; part of the firmware */
    /* Called with each message, from within publish, subscribe and poll; it must call nothing of this agent. */
    void (*on_message)(void *context, struct fleet_span topic, struct fleet_span payload);
    void *context;
};

/* In static memory: 23 KB. What the firmware may read, and else leaves alone: */
struct fleet_agent {
    const struct fleet_config *config;
    uint32_t retry_seconds;    /* with FLEET_BUSY: when to ask again; at most a day */
    unsigned http_status;      /* of the last EST answer; 0 if there was none */
    uint32_t messages_dropped; /* larger than FLEET_PACKET_MAX */
    int is_connected;

    struct fleet_identity identity, next;
    uint8_t answer[FLEET_ANSWER_MAX]; /* of EST; while connected, incoming MQTT */
    uint8_t packet[FLEET_PACKET_MAX + 5];
    uint8_t cas[FLEET_CAS_MAX];
    size_t received, skip;
    uint16_t packet_id;
    uint32_t sent_at, pinged_at;
    int awaits_pong;
    int leftover; /* the slot, counted from 1, that a connection has replaced and that could not be erased; 0: none */
};

/* FLEET_OK, FLEET_CRYPTO, or FLEET_WRONG_USE if a name in `config` is missing, too long, or has spaces. */
int fleet_agent_start(struct fleet_agent *agent, const struct fleet_config *config);

/* The first certificate, by a token (HTTP Basic); FLEET_OK at once if there is one. After a failure or a power loss,
 * the same call goes on with the same key. */
int fleet_agent_enroll(struct fleet_agent *agent, const char *token);

/* For a device whose certificates the server refuses: another one by a new token, into the other slot; connect then
 * proves it. The one in use stays until then. */
int fleet_agent_enroll_again(struct fleet_agent *agent, const char *token);

/* The next certificate, by the one in use, into the other slot: it closes the connection; connect then proves it.
 * FLEET_OK at once if the other slot waits to be proven. */
int fleet_agent_renew(struct fleet_agent *agent);

/* Whether two thirds of the certificate's life are over: 0 if not, or the clock is not set. */
int fleet_agent_is_renewal_due(struct fleet_agent *agent);

/* Connects by the slot that is not proven yet, else by the one in use. A slot that is proven so replaces the other. A slot
 * that cannot be erased then does not end the connection: the next connect or renew erases it. One that cannot be read
 * does not stop a connection by the other, and stops everything that would write. */
int fleet_agent_connect(struct fleet_agent *agent);
void fleet_agent_disconnect(struct fleet_agent *agent);

/* At QoS 1: returns once the server has acknowledged it. After any error but FLEET_WRONG_USE and FLEET_REFUSED (of
 * a filter) the connection is closed. */
int fleet_agent_publish(struct fleet_agent *agent, const char *topic, struct fleet_span payload);
int fleet_agent_subscribe(struct fleet_agent *agent, const char *filter);

/* Delivers what arrives, and keeps the connection alive; returns after `wait_ms`, or the first packet. */
int fleet_agent_poll(struct fleet_agent *agent, uint32_t wait_ms);

#endif
