#include "agent.h"

#include <string.h>

#include "crypto.h"
#include "est.h"
#include "port.h"

/* 1 to `max` printable characters without spaces: none ends a header. */
static int is_word(const char *text, size_t max)
{
    size_t n;

    if (!text)
        return 0;
    for (n = 0; text[n]; n++)
        if (n == max || text[n] <= ' ' || text[n] > '~')
            return 0;
    return n > 0;
}

int fleet_agent_start(struct fleet_agent *agent, const struct fleet_config *config)
{
    memset(agent, 0, sizeof *agent);
    agent->config = config;
    if (!is_word(config->device_id, FLEET_NAME_MAX) || !is_word(config->est_host, 253) ||
        !is_word(config->mqtt_host, 253) || !config->est_label ||
        (config->est_label[0] && !is_word(config->est_label, FLEET_NAME_MAX)) || !config->anchors.size)
        return FLEET_WRONG_USE;
    return fleet_crypto_start();
}

/* The key in `slot` that no certificate was stored for, or a new one, stored. */
static int next_key(struct fleet_agent *agent, int slot)
{
    int result = fleet_slots_read_key(slot, &agent->next);

    if (result != FLEET_NOT_ENROLLED)
        return result;
    result = fleet_key_new(&agent->next);
    return result ? result : fleet_slots_keep_key(slot, &agent->next);
}

static int obtain(struct fleet_agent *agent, int slot, const char *token, const struct fleet_identity *renewed)
{
    struct fleet_span cas[FLEET_CERTIFICATES_MAX], request, issued;
    uint8_t csr[FLEET_CSR_MAX];
    size_t count;
    int result = next_key(agent, slot);

    request.data = csr;
    agent->leftover = 0; /* from here on this slot is another's */
    /* First the CAs, then the certificate: a one-time token is not spent on an answer that cannot be used. */
    if (!result)
        result = fleet_est_cacerts(agent, cas, &count);
    if (!result)
        result = fleet_csr(&agent->next, agent->config->device_id, renewed, csr, sizeof csr, &request.size);
    if (!result)
        result = fleet_est_certificate(agent, token, renewed, request, &issued);
    /* This key will not be certified: the next attempt has another. 403 to a renewal is about the device, and would
     * wear the flash out. */
    if (result == FLEET_REFUSED && (agent->http_status == 400 || (agent->http_status == 403 && !renewed)))
        result = fleet_slots_erase(slot) ? FLEET_FLASH : FLEET_REFUSED;
    if (!result)
        result = fleet_certificate_accept(&agent->next, agent->config->device_id, issued, cas, count,
                                          agent->config->anchors);
    if (!result)
        result = fleet_slots_keep_chain(slot, &agent->next);
    fleet_wipe(&agent->next, sizeof agent->next);
    return result;
}

int fleet_agent_enroll(struct fleet_agent *agent, const char *token)
{
    int current, candidate, result;

    if (!is_word(token, FLEET_TOKEN_MAX))
        return FLEET_WRONG_USE;
    result = fleet_slots_find(&current, &candidate, &agent->identity);
    if (current >= 0 || result)
        return current >= 0 ? FLEET_OK : result;
    fleet_agent_disconnect(agent);
    agent->next.generation = 1;
    return obtain(agent, 0, token, NULL);
}

int fleet_agent_enroll_again(struct fleet_agent *agent, const char *token)
{
    int current, candidate, result;

    if (!is_word(token, FLEET_TOKEN_MAX))
        return FLEET_WRONG_USE;
    result = fleet_slots_find(&current, &candidate, &agent->identity);
    if (result)
        return result;
    if (current < 0)
        return fleet_agent_enroll(agent, token);
    if (candidate >= 0) { /* perhaps the one that this call has got before a power loss */
        result = fleet_agent_connect(agent);
        if (result != FLEET_REFUSED)
            return result;
        result = fleet_slots_erase(candidate);
        if (result)
            return result;
    }
    fleet_agent_disconnect(agent);
    result = fleet_slots_read(current, &agent->identity);
    agent->next.generation = agent->identity.generation + 1;
    fleet_wipe(&agent->identity, sizeof agent->identity);
    return result ? result : obtain(agent, !current, token, NULL);
}

int fleet_agent_renew(struct fleet_agent *agent)
{
    int current, candidate, result;

    if (agent->leftover && fleet_slots_erase(agent->leftover - 1))
        return FLEET_FLASH;
    agent->leftover = 0;
    result = fleet_slots_find(&current, &candidate, &agent->identity);
    if (result)
        return result;
    if (current < 0)
        return FLEET_NOT_ENROLLED;
    if (candidate >= 0)
        return FLEET_OK;
    fleet_agent_disconnect(agent);
    result = fleet_slots_read(current, &agent->identity);
    if (result)
        return result;
    agent->next.generation = agent->identity.generation + 1;
    result = obtain(agent, !current, NULL, &agent->identity);
    fleet_wipe(&agent->identity, sizeof agent->identity);
    return result;
}

int fleet_agent_is_renewal_due(struct fleet_agent *agent)
{
    uint64_t now = fleet_port_time(), not_before, not_after;
    struct fleet_span chain;
    int current, candidate, due = 0;

    fleet_slots_find(&current, &candidate, &agent->identity);
    if (current < 0 || now < FLEET_BUILD_TIME || fleet_slots_read(current, &agent->identity))
        return 0;
    chain.data = agent->identity.chain;
    chain.size = agent->identity.chain_size;
    if (!fleet_certificate_dates(chain, &not_before, &not_after))
        due = now >= not_before + (not_after - not_before) / 3 * 2;
    fleet_wipe(&agent->identity, sizeof agent->identity);
    return due;
}
