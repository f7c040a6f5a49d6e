/* One TLS 1.2 session with Mbed TLS 2.28, in static memory: a device has one connection at a time. */
#include <mbedtls/oid.h>
#include <mbedtls/ssl.h>
#include <string.h>

#include "mbedtls_parts.h"
#include "port.h"

static struct {
    mbedtls_ssl_context ssl;
    mbedtls_ssl_config config;
    mbedtls_x509_crt anchors, chain;
    mbedtls_pk_context key;
    uint32_t began, wait_ms;
    int is_open, is_closed;
} tls;

static void wait_at_most(uint32_t wait_ms)
{
    tls.began = fleet_port_ticks_ms();
    tls.wait_ms = wait_ms;
}

static uint32_t left_ms(void)
{
    uint32_t passed = fleet_port_ticks_ms() - tls.began;

    return passed < tls.wait_ms ? tls.wait_ms - passed : 0;
}

static int receive(void *context, unsigned char *data, size_t size)
{
    int got = fleet_port_read(data, size, left_ms());

    (void)context;
    if (got < 0)
        tls.is_closed = 1;
    return got > 0 ? got : got < 0 ? MBEDTLS_ERR_SSL_CONN_EOF : MBEDTLS_ERR_SSL_WANT_READ;
}

static int send(void *context, const unsigned char *data, size_t size)
{
    int taken = fleet_port_write(data, size);

    (void)context;
    return taken > 0 ? taken : taken < 0 ? MBEDTLS_ERR_SSL_CONN_EOF : MBEDTLS_ERR_SSL_WANT_WRITE;
}

static int check_server(void *context, mbedtls_x509_crt *crt, int depth, uint32_t *flags)
{
    fleet_check_dates(context, crt, depth, flags);
    if (depth == 0) {
        if (!(crt->ext_types & MBEDTLS_X509_EXT_SUBJECT_ALT_NAME)) /* RFC 9525, 2: a common name stands for no host */
            *flags |= MBEDTLS_X509_BADCERT_CN_MISMATCH;
        if (!(crt->ext_types & MBEDTLS_X509_EXT_EXTENDED_KEY_USAGE))
            *flags |= MBEDTLS_X509_BADCERT_EXT_KEY_USAGE;
    }
    return 0;
}

static int configure(const char *host, struct fleet_span anchors, const struct fleet_identity *identity)
{
    struct fleet_span chain;

    if (mbedtls_ssl_config_defaults(&tls.config, MBEDTLS_SSL_IS_CLIENT, MBEDTLS_SSL_TRANSPORT_STREAM,
                                    MBEDTLS_SSL_PRESET_DEFAULT))
        return FLEET_CRYPTO;
    mbedtls_ssl_conf_min_version(&tls.config, MBEDTLS_SSL_MAJOR_VERSION_3, MBEDTLS_SSL_MINOR_VERSION_3);
    mbedtls_ssl_conf_authmode(&tls.config, MBEDTLS_SSL_VERIFY_REQUIRED);
    mbedtls_ssl_conf_verify(&tls.config, check_server, NULL);
    mbedtls_ssl_conf_rng(&tls.config, mbedtls_ctr_drbg_random, &fleet_drbg);
    if (fleet_load_anchors(&tls.anchors, anchors))
        return FLEET_UNTRUSTED;
    mbedtls_ssl_conf_ca_chain(&tls.config, &tls.anchors, NULL);
    if (identity) {
        chain.data = identity->chain;
        chain.size = identity->chain_size;
        if (fleet_load_chain(&tls.chain, chain) || fleet_load_key(&tls.key, identity) ||
            mbedtls_ssl_conf_own_cert(&tls.config, &tls.chain, &tls.key))
            return FLEET_CRYPTO;
    }
    if (mbedtls_ssl_setup(&tls.ssl, &tls.config) || mbedtls_ssl_set_hostname(&tls.ssl, host))
        return FLEET_CRYPTO;
    mbedtls_ssl_set_bio(&tls.ssl, NULL, send, receive, NULL);
    return FLEET_OK;
}

static int status_of(int error)
{
    switch (error) {
    case MBEDTLS_ERR_X509_CERT_VERIFY_FAILED:
    case MBEDTLS_ERR_SSL_CA_CHAIN_REQUIRED:
    case MBEDTLS_ERR_SSL_NO_CLIENT_CERTIFICATE:
        return FLEET_UNTRUSTED;
    case MBEDTLS_ERR_SSL_FATAL_ALERT_MESSAGE:
        return FLEET_REFUSED;
    case MBEDTLS_ERR_SSL_ALLOC_FAILED:
        return FLEET_CRYPTO;
    default:
        return FLEET_NETWORK;
    }
}

int fleet_tls_open(const char *host, uint16_t port, struct fleet_span anchors, const struct fleet_identity *identity,
                   uint32_t wait_ms)
{
    int result, error;

    fleet_tls_close();
    mbedtls_ssl_init(&tls.ssl);
    mbedtls_ssl_config_init(&tls.config);
    mbedtls_x509_crt_init(&tls.anchors);
    mbedtls_x509_crt_init(&tls.chain);
    mbedtls_pk_init(&tls.key);
    tls.is_open = 1;
    tls.is_closed = 0;
    wait_at_most(wait_ms);
    result = configure(host, anchors, identity);
    if (!result && fleet_port_connect(host, port)) {
        tls.is_closed = 1;
        result = FLEET_NETWORK;
    }
    if (!result && (error = mbedtls_ssl_handshake(&tls.ssl)) != 0)
        result = status_of(error);
    if (result)
        fleet_tls_close();
    return result;
}

int fleet_tls_read(uint8_t *data, size_t size, uint32_t wait_ms, size_t *got)
{
    int result;

    *got = 0;
    wait_at_most(wait_ms);
    result = mbedtls_ssl_read(&tls.ssl, data, size);
    if (result == MBEDTLS_ERR_SSL_WANT_READ)
        return FLEET_MORE;
    if (result <= 0)
        return result < 0 ? status_of(result) : FLEET_NETWORK;
    *got = (size_t)result;
    return FLEET_OK;
}

int fleet_tls_write(const uint8_t *data, size_t size, uint32_t wait_ms)
{
    int result;

    wait_at_most(wait_ms);
    while (size) {
        result = mbedtls_ssl_write(&tls.ssl, data, size);
        if (result == MBEDTLS_ERR_SSL_WANT_WRITE && left_ms())
            continue;
        if (result <= 0)
            return result < 0 ? status_of(result) : FLEET_NETWORK;
        data += result;
        size -= (size_t)result;
    }
    return FLEET_OK;
}

void fleet_tls_close(void)
{
    if (!tls.is_open)
        return;
    if (!tls.is_closed)
        mbedtls_ssl_close_notify(&tls.ssl);
    fleet_port_close();
    mbedtls_ssl_free(&tls.ssl);
    mbedtls_ssl_config_free(&tls.config);
    mbedtls_x509_crt_free(&tls.anchors);
    mbedtls_x509_crt_free(&tls.chain);
    mbedtls_pk_free(&tls.key);
    tls.is_open = 0;
}
