/* What a certificate must be, with Mbed TLS 2.28. */
#include <mbedtls/oid.h>
#include <string.h>

#include "mbedtls_parts.h"
#include "parsers.h"
#include "port.h"

/* Days since 1970 of a date in the Gregorian calendar. */
static uint64_t days_of(int year, int month, int day)
{
    int shifted = month > 2 ? year : year - 1; /* the year begins in March: the leap day is its last */
    int era = shifted / 400, of_era = shifted - era * 400;
    int of_year = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1;

    return (uint64_t)era * 146097u + (uint64_t)(of_era * 365 + of_era / 4 - of_era / 100 + of_year) - 719468u;
}

static uint64_t seconds_of(const mbedtls_x509_time *at)
{
    if (at->year < 1970)
        return 0;
    return days_of(at->year, at->mon, at->day) * 86400u + (uint64_t)(at->hour * 3600 + at->min * 60 + at->sec);
}

int fleet_check_dates(void *context, mbedtls_x509_crt *crt, int depth, uint32_t *flags)
{
    uint64_t now = fleet_port_time();

    (void)context;
    (void)depth;
    *flags &= ~(uint32_t)(MBEDTLS_X509_BADCERT_EXPIRED | MBEDTLS_X509_BADCERT_FUTURE);
    if (now >= FLEET_BUILD_TIME) { /* any other clock is not set: a device without one must still connect */
        if (now < seconds_of(&crt->valid_from))
            *flags |= MBEDTLS_X509_BADCERT_FUTURE;
        if (now > seconds_of(&crt->valid_to))
            *flags |= MBEDTLS_X509_BADCERT_EXPIRED;
    }
    return 0;
}

int fleet_certificate_dates(struct fleet_span chain, uint64_t *not_before, uint64_t *not_after)
{
    mbedtls_x509_crt crt;
    int result = fleet_load_chain(&crt, chain);

    if (!result) {
        *not_before = seconds_of(&crt.valid_from);
        *not_after = seconds_of(&crt.valid_to);
    }
    mbedtls_x509_crt_free(&crt);
    return result;
}

/* Whether the subject has exactly one common name, and that is `device_id`. */
static int names(const mbedtls_x509_crt *crt, const char *device_id)
{
    const mbedtls_x509_name *name;
    int count = 0, same = 0;

    for (name = &crt->subject; name; name = name->next)
        if (!MBEDTLS_OID_CMP(MBEDTLS_OID_AT_CN, &name->oid)) {
            count++;
            same = name->val.len == strlen(device_id) && !memcmp(name->val.p, device_id, name->val.len);
        }
    return count == 1 && same;
}

static int is_for_key(mbedtls_x509_crt *crt, const struct fleet_identity *identity)
{
    mbedtls_pk_context pk;
    int same = !fleet_load_key(&pk, identity) && !mbedtls_pk_check_pair(&crt->pk, &pk);

    mbedtls_pk_free(&pk);
    return same;
}

static int same(const mbedtls_x509_buf *one, const mbedtls_x509_buf *other)
{
    return one->len == other->len && !memcmp(one->p, other->p, one->len);
}

static int append(struct fleet_identity *identity, const mbedtls_x509_buf *der)
{
    if (der->len > FLEET_CHAIN_MAX - identity->chain_size)
        return FLEET_TOO_LARGE;
    memcpy(identity->chain + identity->chain_size, der->p, der->len);
    identity->chain_size += der->len;
    return FLEET_OK;
}

static const mbedtls_x509_crt *issuer_of(const mbedtls_x509_crt *crt, const mbedtls_x509_crt *list)
{
    while (list && !same(&list->subject_raw, &crt->issuer_raw))
        list = list->next;
    return list;
}

/* The search for a chain from the certificate, first in `all`, to an anchor. Mbed TLS takes the first issuer of the right
 * name and key, and never another: after a change of the root there are several, of which one leads to our anchor. */
struct search {
    struct fleet_identity *identity;
    const mbedtls_x509_crt *all;
    mbedtls_x509_crt *anchors;
    const mbedtls_x509_crt *path[FLEET_DEPTH_MAX];
    unsigned tries;
};

/* FLEET_OK with the chain in the identity, or FLEET_UNTRUSTED. */
static int try_path(struct search *search, unsigned length)
{
    mbedtls_x509_crt list;
    uint32_t flags;
    unsigned n;
    int result = FLEET_OK;

    mbedtls_x509_crt_init(&list);
    search->identity->chain_size = 0;
    for (n = 0; !result && n < length; n++) {
        result = append(search->identity, &search->path[n]->raw);
        if (!result && mbedtls_x509_crt_parse_der(&list, search->path[n]->raw.p, search->path[n]->raw.len))
            result = FLEET_CRYPTO;
    }
    if (!result && mbedtls_x509_crt_verify(&list, search->anchors, NULL, NULL, &flags, fleet_check_dates, NULL))
        result = FLEET_UNTRUSTED;
    mbedtls_x509_crt_free(&list);
    return result;
}

/* Extends the path to `wanted` certificates, in each way that names allow. */
static int extend(struct search *search, unsigned length, unsigned wanted)
{
    const mbedtls_x509_crt *last = search->path[length - 1], *next;
    int result = FLEET_UNTRUSTED;

    if (length == wanted) {
        if (!issuer_of(last, search->anchors) || search->tries == FLEET_PATHS_MAX)
            return FLEET_UNTRUSTED;
        search->tries++;
        return try_path(search, length);
    }
    for (next = issuer_of(last, search->all->next); next && result == FLEET_UNTRUSTED;
         next = issuer_of(last, next->next)) {
        search->path[length] = next;
        result = extend(search, length + 1, wanted);
    }
    return result;
}

static int accept(struct fleet_identity *identity, const char *device_id, mbedtls_x509_crt *list,
                  mbedtls_x509_crt *anchors)
{
    struct search search;
    unsigned wanted;
    int result = FLEET_UNTRUSTED;

    if (!names(list, device_id) || !is_for_key(list, identity) || list->ca_istrue ||
        !(list->ext_types & MBEDTLS_X509_EXT_EXTENDED_KEY_USAGE) ||
        mbedtls_x509_crt_check_extended_key_usage(list, MBEDTLS_OID_CLIENT_AUTH,
                                                  MBEDTLS_OID_SIZE(MBEDTLS_OID_CLIENT_AUTH)))
        return FLEET_UNTRUSTED;
    memset(&search, 0, sizeof search);
    search.identity = identity;
    search.all = list;
    search.anchors = anchors;
    search.path[0] = list;
    for (wanted = 1; wanted <= FLEET_DEPTH_MAX && result == FLEET_UNTRUSTED; wanted++)
        result = extend(&search, 1, wanted);
    return result;
}

int fleet_certificate_accept(struct fleet_identity *identity, const char *device_id, struct fleet_span issued,
                             const struct fleet_span *cas, size_t ca_count, struct fleet_span anchors)
{
    mbedtls_x509_crt list, trusted;
    size_t n;
    int result = fleet_load_anchors(&trusted, anchors);

    mbedtls_x509_crt_init(&list);
    if (!result && mbedtls_x509_crt_parse_der(&list, issued.data, issued.size))
        result = FLEET_BAD_INPUT;
    for (n = 0; !result && n < ca_count; n++)
        mbedtls_x509_crt_parse_der(&list, cas[n].data, cas[n].size); /* one of an unknown kind is left out */
    if (!result)
        result = accept(identity, device_id, &list, &trusted);
    mbedtls_x509_crt_free(&list);
    mbedtls_x509_crt_free(&trusted);
    return result;
}
