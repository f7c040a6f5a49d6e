#include "est.h"

#include <stdio.h>
#include <string.h>

#include "crypto.h"
#include "parsers.h"
#include "port.h"

#define HEADER_MAX 1024u

static size_t request_header(const struct fleet_agent *agent, const char *operation, const char *token,
                             size_t content_size, char *out)
{
    const struct fleet_config *config = agent->config;
    char pair[FLEET_NAME_MAX + FLEET_TOKEN_MAX + 2], basic[(sizeof pair + 2) / 3 * 4 + 1] = "";
    int size, is_post = content_size > 0;

    if (token) { /* RFC 7617, 2: a user has no colon; the token says which device it is for */
        size = snprintf(pair, sizeof pair, "%s:%s", strchr(config->device_id, ':') ? "" : config->device_id, token);
        if (size < 0 || (size_t)size >= sizeof pair ||
            !fleet_base64_encode((uint8_t *)pair, (size_t)size, basic, sizeof basic))
            return 0;
    }
    size = snprintf(out, HEADER_MAX,
                    "%s /.well-known/est/%s%s%s HTTP/1.1\r\nHost: %s:%u\r\nAccept: */*\r\nConnection: close\r\n"
                    "%s%s%s%sContent-Length: %u\r\n\r\n",
                    is_post ? "POST" : "GET", config->est_label, config->est_label[0] ? "/" : "", operation,
                    config->est_host, (unsigned)config->est_port,
                    is_post ? "Content-Type: application/pkcs10\r\nContent-Transfer-Encoding: base64\r\n" : "",
                    token ? "Authorization: Basic " : "", basic, token ? "\r\n" : "", (unsigned)content_size);
    fleet_wipe(pair, sizeof pair);
    fleet_wipe(basic, sizeof basic);
    return size > 0 && (size_t)size < HEADER_MAX ? (size_t)size : 0;
}

static uint32_t left_of(uint32_t began)
{
    uint32_t passed = fleet_port_ticks_ms() - began;

    return passed < FLEET_EST_MS ? FLEET_EST_MS - passed : 0;
}

/* Header and content into agent->answer. */
static int read_answer(struct fleet_agent *agent, uint32_t began, struct fleet_http_answer *answer)
{
    size_t size = 0, got;
    int result = FLEET_MORE;

    for (;;) {
        if (result == FLEET_MORE)
            result = fleet_http_answer(agent->answer, size, answer);
        if (result && result != FLEET_MORE)
            return result;
        if (!result && answer->header_size + answer->content_size > sizeof agent->answer)
            return FLEET_TOO_LARGE;
        if (!result && size >= answer->header_size + answer->content_size)
            return FLEET_OK;
        if (size == sizeof agent->answer)
            return FLEET_TOO_LARGE;
        if (fleet_tls_read(agent->answer + size, sizeof agent->answer - size, left_of(began), &got))
            return FLEET_NETWORK; /* closed or too late: the answer is cut */
        size += got;
    }
}

static int status_of(const struct fleet_http_answer *answer)
{
    switch (answer->status) {
    case 200:
        return FLEET_OK;
    case 202: /* RFC 7030, 4.2.3 */
    case 429:
        return FLEET_BUSY;
    default:
        return answer->status >= 500 ? FLEET_BUSY : answer->status >= 400 ? FLEET_REFUSED : FLEET_BAD_INPUT;
    }
}

static int exchange(struct fleet_agent *agent, const char *operation, const char *token, struct fleet_span csr,
                    struct fleet_http_answer *answer)
{
    uint32_t began = fleet_port_ticks_ms();
    size_t header, content = (csr.size + 2) / 3 * 4;
    int result = FLEET_WRONG_USE;

    header = request_header(agent, operation, token, content, (char *)agent->answer);
    if (header && (!csr.size || fleet_base64_encode(csr.data, csr.size, (char *)agent->answer + header,
                                                    sizeof agent->answer - header)))
        result = fleet_tls_write(agent->answer, header + content, left_of(began));
    fleet_wipe(agent->answer, header + content); /* the token */
    return result ? result : read_answer(agent, began, answer);
}

/* One request: the certificates of its answer, in agent->answer. */
static int ask(struct fleet_agent *agent, const char *operation, const char *token, const struct fleet_identity *shown,
               struct fleet_span csr, struct fleet_span *certificates, size_t *count)
{
    const struct fleet_config *config = agent->config;
    struct fleet_http_answer answer;
    uint8_t *content;
    size_t size;
    int result = fleet_tls_open(config->est_host, config->est_port, config->anchors, shown, FLEET_EST_MS);

    agent->http_status = 0;
    agent->retry_seconds = 0;
    if (result)
        return result;
    result = exchange(agent, operation, token, csr, &answer);
    fleet_tls_close();
    if (result)
        return result;
    agent->http_status = answer.status;
    result = status_of(&answer);
    if (result == FLEET_BUSY)
        agent->retry_seconds = answer.retry_seconds ? answer.retry_seconds : 60;
    if (result)
        return result;
    content = agent->answer + answer.header_size;
    result = fleet_base64_decode(content, answer.content_size, &size);
    return result ? result : fleet_certs_only(content, size, certificates, count);
}

int fleet_est_cacerts(struct fleet_agent *agent, struct fleet_span *cas, size_t *count)
{
    struct fleet_span none = {NULL, 0};
    size_t n, used = 0;
    int result = ask(agent, "cacerts", NULL, NULL, none, cas, count);

    for (n = 0; !result && n < *count; n++) {
        if (cas[n].size > sizeof agent->cas - used)
            return FLEET_TOO_LARGE;
        memcpy(agent->cas + used, cas[n].data, cas[n].size);
        cas[n].data = agent->cas + used;
        used += cas[n].size;
    }
    return result;
}

int fleet_est_certificate(struct fleet_agent *agent, const char *token, const struct fleet_identity *shown,
                          struct fleet_span csr, struct fleet_span *issued)
{
    struct fleet_span found[FLEET_CERTIFICATES_MAX];
    size_t count;
    int result = ask(agent, shown ? "simplereenroll" : "simpleenroll", token, shown, csr, found, &count);

    if (result)
        return result;
    if (count != 1) /* RFC 7030, 4.2.3: only the issued one */
        return FLEET_BAD_INPUT;
    *issued = found[0];
    return FLEET_OK;
}
