/* Keys, CSRs and certificates with Mbed TLS 2.28. */
#include <mbedtls/asn1write.h>
#include <mbedtls/ecp.h>
#include <mbedtls/oid.h>
#include <mbedtls/platform_util.h>
#include <mbedtls/sha256.h>
#include <string.h>

#include "mbedtls_parts.h"
#include "parsers.h"
#include "port.h"

mbedtls_ctr_drbg_context fleet_drbg;

static int seed(void *context, unsigned char *out, size_t size)
{
    (void)context;
    return fleet_port_random(out, size) ? MBEDTLS_ERR_CTR_DRBG_ENTROPY_SOURCE_FAILED : 0;
}

#ifdef MBEDTLS_MEMORY_BUFFER_ALLOC_C
#include <mbedtls/memory_buffer_alloc.h>

static unsigned char heap[FLEET_HEAP_SIZE];
#endif

int fleet_crypto_start(void)
{
#ifdef MBEDTLS_MEMORY_BUFFER_ALLOC_C
    mbedtls_memory_buffer_alloc_init(heap, sizeof heap);
#endif
    mbedtls_ctr_drbg_init(&fleet_drbg);
    return mbedtls_ctr_drbg_seed(&fleet_drbg, seed, NULL, NULL, 0) ? FLEET_CRYPTO : FLEET_OK;
}

int fleet_sha256(const uint8_t *data, size_t size, uint8_t hash[32])
{
    return mbedtls_sha256_ret(data, size, hash, 0) ? FLEET_CRYPTO : FLEET_OK;
}

void fleet_wipe(void *data, size_t size)
{
    mbedtls_platform_zeroize(data, size);
}

int fleet_load_key(mbedtls_pk_context *pk, const struct fleet_identity *identity)
{
    mbedtls_pk_init(pk);
    return mbedtls_pk_parse_key(pk, identity->key, identity->key_size, NULL, 0) ? FLEET_CRYPTO : FLEET_OK;
}

int fleet_load_anchors(mbedtls_x509_crt *crt, struct fleet_span anchors)
{
    mbedtls_x509_crt_init(crt);
    return mbedtls_x509_crt_parse(crt, anchors.data, anchors.size) ? FLEET_UNTRUSTED : FLEET_OK;
}

int fleet_load_chain(mbedtls_x509_crt *crt, struct fleet_span chain)
{
    struct fleet_span one;

    mbedtls_x509_crt_init(crt);
    while (chain.size)
        if (fleet_der_take(&chain, 0x30, &one, NULL) || mbedtls_x509_crt_parse_der(crt, one.data, one.size))
            return FLEET_BAD_INPUT;
    return crt->version ? FLEET_OK : FLEET_BAD_INPUT;
}

int fleet_key_new(struct fleet_identity *identity)
{
    mbedtls_pk_context pk;
    int size = -1;

    mbedtls_pk_init(&pk);
    if (!mbedtls_pk_setup(&pk, mbedtls_pk_info_from_type(MBEDTLS_PK_ECKEY)) &&
        !mbedtls_ecp_gen_key(MBEDTLS_ECP_DP_SECP256R1, mbedtls_pk_ec(pk), mbedtls_ctr_drbg_random, &fleet_drbg))
        size = mbedtls_pk_write_key_der(&pk, identity->key, sizeof identity->key);
    mbedtls_pk_free(&pk);
    identity->key_size = size > 0 ? (size_t)size : 0;
    if (size <= 0)
        return FLEET_CRYPTO;
    memmove(identity->key, identity->key + sizeof identity->key - size, (size_t)size); /* it is written at the end */
    return FLEET_OK;
}

enum { UTF8 = 0x0C, SEQUENCE = 0x30, SET = 0x31, CONTEXT_0 = 0xA0 };

/* ecdsa-with-SHA256 (RFC 5758, 3.2) */
static const uint8_t ECDSA_SHA256[] = {0x30, 0x0A, 0x06, 0x08, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, 0x02};

/* A buffer that is filled from its end, as DER is written. */
struct draft {
    unsigned char *start, *at;
    int failed;
};

static void put(struct draft *draft, const void *data, size_t size)
{
    if (!draft->failed)
        draft->failed = mbedtls_asn1_write_raw_buffer(&draft->at, draft->start, data, size) < 0;
}

/* Puts a header in front of what has been written since `end`. */
static void wrap(struct draft *draft, const unsigned char *end, unsigned char tag)
{
    if (!draft->failed)
        draft->failed = mbedtls_asn1_write_len(&draft->at, draft->start, (size_t)(end - draft->at)) < 0 ||
                        mbedtls_asn1_write_tag(&draft->at, draft->start, tag) < 0;
}

static void put_oid(struct draft *draft, const char *oid, size_t size)
{
    if (!draft->failed)
        draft->failed = mbedtls_asn1_write_oid(&draft->at, draft->start, oid, size) < 0;
}

static void put_common_name(struct draft *draft, const char *name)
{
    const unsigned char *end = draft->at;

    put(draft, name, strlen(name));
    wrap(draft, end, UTF8);
    put_oid(draft, MBEDTLS_OID_AT_CN, MBEDTLS_OID_SIZE(MBEDTLS_OID_AT_CN));
    wrap(draft, end, SEQUENCE);
    wrap(draft, end, SET);
    wrap(draft, end, SEQUENCE);
}

/* RFC 2986, 4.1: certificationRequestInfo. */
static void put_request_info(struct draft *draft, mbedtls_pk_context *pk, const char *device_id,
                             struct fleet_span subject, struct fleet_span san)
{
    static const uint8_t version_0[] = {0x02, 0x01, 0x00};
    const unsigned char *end = draft->at;
    unsigned char spki[128];
    int size;

    if (san.size) {
        put(draft, san.data, san.size);
        wrap(draft, end, SEQUENCE);
        wrap(draft, end, SET);
        put_oid(draft, MBEDTLS_OID_PKCS9_CSR_EXT_REQ, MBEDTLS_OID_SIZE(MBEDTLS_OID_PKCS9_CSR_EXT_REQ));
        wrap(draft, end, SEQUENCE);
    }
    wrap(draft, end, CONTEXT_0); /* there, if empty, too */
    size = mbedtls_pk_write_pubkey_der(pk, spki, sizeof spki);
    if (size <= 0)
        draft->failed = 1;
    else
        put(draft, spki + sizeof spki - size, (size_t)size);
    if (subject.size)
        put(draft, subject.data, subject.size);
    else
        put_common_name(draft, device_id);
    put(draft, version_0, sizeof version_0);
    wrap(draft, end, SEQUENCE);
}

/* RFC 2986, 4.2: the signature over the info, which is signed here, and all around them. */
static void put_request(struct draft *draft, mbedtls_pk_context *pk, const unsigned char *info, size_t info_size)
{
    static const uint8_t no_unused_bits[] = {0};
    const unsigned char *end = draft->at;
    unsigned char hash[32], signature[MBEDTLS_PK_SIGNATURE_MAX_SIZE];
    size_t size;

    if (fleet_sha256(info, info_size, hash) || mbedtls_pk_sign(pk, MBEDTLS_MD_SHA256, hash, sizeof hash, signature,
                                                               &size, mbedtls_ctr_drbg_random, &fleet_drbg)) {
        draft->failed = 1;
        return;
    }
    put(draft, signature, size);
    put(draft, no_unused_bits, 1);
    wrap(draft, end, 0x03); /* BIT STRING */
    put(draft, ECDSA_SHA256, sizeof ECDSA_SHA256);
    put(draft, info, info_size);
    wrap(draft, end, SEQUENCE);
}

int fleet_csr(const struct fleet_identity *identity, const char *device_id, const struct fleet_identity *renewed,
              uint8_t *out, size_t out_max, size_t *size)
{
    struct fleet_span subject = {NULL, 0}, san = {NULL, 0}, chain, extensions;
    unsigned char info[FLEET_CSR_MAX - 128];
    struct draft first, second;
    mbedtls_x509_crt before;
    mbedtls_pk_context pk;

    mbedtls_x509_crt_init(&before);
    if (fleet_load_key(&pk, identity)) {
        mbedtls_pk_free(&pk);
        return FLEET_CRYPTO;
    }
    first.start = info;
    first.at = info + sizeof info;
    first.failed = 0;
    second.start = out;
    second.at = out + out_max;
    second.failed = 0;
    if (renewed) {
        chain.data = renewed->chain;
        chain.size = renewed->chain_size;
        first.failed = fleet_load_chain(&before, chain) != FLEET_OK;
        subject.data = before.subject_raw.p;
        subject.size = before.subject_raw.len;
        extensions.data = before.v3_ext.p;
        extensions.size = before.v3_ext.len;
        if (!first.failed)
            first.failed = fleet_subject_alt_name(extensions, &san) != FLEET_OK;
    }
    if (!first.failed)
        put_request_info(&first, &pk, device_id, subject, san);
    if (!first.failed)
        put_request(&second, &pk, first.at, (size_t)(info + sizeof info - first.at));
    mbedtls_x509_crt_free(&before);
    mbedtls_pk_free(&pk);
    if (first.failed || second.failed)
        return FLEET_CRYPTO;
    *size = (size_t)(out + out_max - second.at);
    memmove(out, second.at, *size);
    return FLEET_OK;
}
