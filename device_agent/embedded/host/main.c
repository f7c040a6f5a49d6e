/* A device on the host: fleet-device FLASH DEVICE-ID EST-PORT MQTT-PORT ANCHORS.pem COMMAND...
 *
 *     enroll              the token is a line of standard input
 *     enroll-again        the same, for a device that has a certificate
 *     renew
 *     connect             proves the newest certificate
 *     publish TOPIC TEXT
 *     receive FILTER      prints "subscribed", then one message
 *     live                subscribes to devices/ID/down/#, and does what standard input says, a line each: publish
 *                         TOPIC TEXT, receive, renew
 *
 * Servers are on localhost. Prints what the agent returns: exit code 0 is ok, 1 anything else.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../agent.h"
#include "port_host.h"

static const char *const NAMES[] = {"ok",      "more", "bad-input", "too-large", "network",      "untrusted",
                                    "refused", "busy", "flash",     "crypto",    "not-enrolled", "wrong-use"};
static struct fleet_agent agent;
static struct fleet_config config;
static int received;

static void on_message(void *context, struct fleet_span topic, struct fleet_span payload)
{
    (void)context;
    printf("%.*s %.*s\n", (int)topic.size, (const char *)topic.data, (int)payload.size, (const char *)payload.data);
    fflush(stdout);
    received++;
}

static int line_of(char *line, size_t size)
{
    if (!fgets(line, (int)size, stdin))
        return 0;
    line[strcspn(line, "\r\n")] = '\0';
    return 1;
}

static int say(const char *what, int result)
{
    printf("%s: %s, EST %u, retry %lu s, %lu changes of flash\n", what, NAMES[result], agent.http_status,
           (unsigned long)agent.retry_seconds, fleet_host_flash_changes());
    fflush(stdout);
    return result;
}

static int publish(const char *topic, const char *text)
{
    struct fleet_span payload;

    payload.data = (const uint8_t *)text;
    payload.size = strlen(text);
    return fleet_agent_publish(&agent, topic, payload);
}

static int receive(void)
{
    int result = FLEET_OK, before = received;

    while (!result && received == before)
        result = fleet_agent_poll(&agent, 1000);
    return result;
}

static int begin(const char *filter)
{
    int result = fleet_agent_connect(&agent);

    return result ? result : fleet_agent_subscribe(&agent, filter);
}

static int live(void)
{
    char line[512], filter[FLEET_NAME_MAX + 32], *topic, *text;
    int result;

    snprintf(filter, sizeof filter, "devices/%s/down/#", config.device_id);
    result = say("connect", begin(filter));
    while (!result && line_of(line, sizeof line)) {
        if (!strcmp(line, "receive")) {
            result = receive();
        } else if (!strcmp(line, "renew")) {
            result = fleet_agent_renew(&agent);
            if (!result)
                result = begin(filter);
        } else {
            topic = strchr(line, ' ');
            text = topic ? strchr(topic + 1, ' ') : NULL;
            if (!text)
                return FLEET_WRONG_USE;
            *text = '\0';
            result = publish(topic + 1, text + 1);
        }
        say(strtok(line, " "), result);
    }
    return result;
}

static int perform(int count, char **words)
{
    char token[FLEET_TOKEN_MAX + 2];
    int result;

    if (!strcmp(words[0], "enroll") && count == 1)
        return line_of(token, sizeof token) ? fleet_agent_enroll(&agent, token) : FLEET_WRONG_USE;
    if (!strcmp(words[0], "enroll-again") && count == 1)
        return line_of(token, sizeof token) ? fleet_agent_enroll_again(&agent, token) : FLEET_WRONG_USE;
    if (!strcmp(words[0], "renew") && count == 1)
        return fleet_agent_renew(&agent);
    if (!strcmp(words[0], "connect") && count == 1)
        return fleet_agent_connect(&agent);
    if (!strcmp(words[0], "live") && count == 1)
        return live();
    if (!strcmp(words[0], "publish") && count == 3) {
        result = fleet_agent_connect(&agent);
        return result ? result : publish(words[1], words[2]);
    }
    if (!strcmp(words[0], "receive") && count == 2) {
        result = begin(words[1]);
        if (!result) {
            puts("subscribed");
            fflush(stdout);
            result = receive();
        }
        return result;
    }
    return FLEET_WRONG_USE;
}

static int load(const char *path, struct fleet_span *anchors)
{
    static uint8_t pem[16384];
    FILE *file = fopen(path, "rb");

    if (!file)
        return -1;
    anchors->data = pem;
    anchors->size = fread(pem, 1, sizeof pem - 1, file) + 1; /* with its NUL */
    fclose(file);
    return 0;
}

int main(int count, char **words)
{
    int result;

    if (count < 7 || fleet_host_flash_open(words[1]) || load(words[5], &config.anchors)) {
        fputs("usage: fleet-device FLASH DEVICE-ID EST-PORT MQTT-PORT ANCHORS.pem COMMAND...\n", stderr);
        return 2;
    }
    config.device_id = words[2];
    config.est_host = config.mqtt_host = "localhost";
    config.est_port = (uint16_t)atoi(words[3]);
    config.mqtt_port = (uint16_t)atoi(words[4]);
    config.est_label = "";
    config.on_message = on_message;
    result = fleet_agent_start(&agent, &config);
    if (!result)
        result = perform(count - 6, words + 6);
    fleet_agent_disconnect(&agent);
    return say(words[6], result) ? 1 : 0;
}
