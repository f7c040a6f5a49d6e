/* verify_server PORT ROOT.pem: whether Mbed TLS verifies the certificate of localhost:PORT with this root alone. */
#include <mbedtls/ctr_drbg.h>
#include <mbedtls/entropy.h>
#include <mbedtls/net_sockets.h>
#include <mbedtls/ssl.h>
#include <stdio.h>

int main(int count, char **words)
{
    mbedtls_net_context net;
    mbedtls_entropy_context entropy;
    mbedtls_ctr_drbg_context random;
    mbedtls_ssl_context tls;
    mbedtls_ssl_config config;
    mbedtls_x509_crt root;

    mbedtls_net_init(&net);
    mbedtls_entropy_init(&entropy);
    mbedtls_ctr_drbg_init(&random);
    mbedtls_ssl_init(&tls);
    mbedtls_ssl_config_init(&config);
    mbedtls_x509_crt_init(&root);
    if (count != 3 || mbedtls_ctr_drbg_seed(&random, mbedtls_entropy_func, &entropy, NULL, 0) ||
        mbedtls_x509_crt_parse_file(&root, words[2]) ||
        mbedtls_net_connect(&net, "127.0.0.1", words[1], MBEDTLS_NET_PROTO_TCP) ||
        mbedtls_ssl_config_defaults(&config, MBEDTLS_SSL_IS_CLIENT, MBEDTLS_SSL_TRANSPORT_STREAM,
                                    MBEDTLS_SSL_PRESET_DEFAULT))
        return 2;
    mbedtls_ssl_conf_ca_chain(&config, &root, NULL);
    mbedtls_ssl_conf_rng(&config, mbedtls_ctr_drbg_random, &random);
    if (mbedtls_ssl_setup(&tls, &config) || mbedtls_ssl_set_hostname(&tls, "localhost"))
        return 2;
    mbedtls_ssl_set_bio(&tls, &net, mbedtls_net_send, mbedtls_net_recv, NULL);
    int failed = mbedtls_ssl_handshake(&tls);
    unsigned result = mbedtls_ssl_get_verify_result(&tls);
    printf("handshake -0x%x, verification 0x%x\n", -failed, result);
    return result != 0; /* a listener that asks for a client certificate may refuse us after that */
}
