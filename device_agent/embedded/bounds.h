/* Limits, and what functions return. Those in #ifndef may be set by -D. */
#ifndef FLEET_BOUNDS_H
#define FLEET_BOUNDS_H

#include <stddef.h>
#include <stdint.h>

#ifndef FLEET_SECTOR_SIZE
#define FLEET_SECTOR_SIZE 4096u /* what is erased at once; a slot takes two sectors */
#endif
#ifndef FLEET_FLASH_UNIT
#define FLEET_FLASH_UNIT 8u /* what is written at once */
#endif
#define FLEET_FLASH_SIZE (4u * FLEET_SECTOR_SIZE)

#ifndef FLEET_ANSWER_MAX
#define FLEET_ANSWER_MAX 8192u /* an EST answer with its header: cacerts after two changes of the root has 6,600 */
#endif
#ifndef FLEET_PACKET_MAX
#define FLEET_PACKET_MAX 2048u /* an MQTT packet; larger messages are acknowledged, counted and dropped */
#endif
#ifndef FLEET_HEAP_SIZE
#define FLEET_HEAP_SIZE 49152u /* for the library, where it allocates from an array (mbedtls_config.h) */
#endif
#define FLEET_KEY_MAX 136u     /* an EC P-256 key in DER has 121 */
#define FLEET_CHAIN_MAX 3072u  /* the device's certificate and the CAs below the root, in DER */
#define FLEET_CAS_MAX 6144u    /* the CA certificates of an EST answer, in DER */
#define FLEET_CSR_MAX 1024u
#define FLEET_NAME_MAX 128u    /* device id */
#define FLEET_TOKEN_MAX 256u
#define FLEET_DEPTH_MAX 4u        /* certificates in a chain, without the anchor */
#define FLEET_PATHS_MAX 32u       /* chains that are verified, in search of one that leads to an anchor */
#define FLEET_CERTIFICATES_MAX 16u /* in one EST answer */
#define FLEET_RETRY_SECONDS_MAX 86400u /* whatever a server asks for */
#define FLEET_EST_MS 60000u    /* for one EST request, from connect to the last byte */
#define FLEET_MQTT_MS 20000u   /* for one MQTT answer, the handshake included */
#define FLEET_KEEPALIVE_SECONDS 60u
#define FLEET_BUILD_TIME 1767225600u /* 2026-01-01: a clock below this is not set */

enum fleet_status {
    FLEET_OK = 0,
    FLEET_MORE,         /* the input is not complete */
    FLEET_BAD_INPUT,    /* the peer broke the protocol */
    FLEET_TOO_LARGE,    /* more than a limit of ours */
    FLEET_NETWORK,      /* not connected, closed, or too late */
    FLEET_UNTRUSTED,    /* the server's certificate, or the one that it issued, does not verify */
    FLEET_REFUSED,      /* the server knows us, and says no */
    FLEET_BUSY,         /* ask again after retry_seconds */
    FLEET_FLASH,        /* flash did not take what was written */
    FLEET_CRYPTO,       /* the library failed: mostly, out of memory */
    FLEET_NOT_ENROLLED, /* no complete slot */
    FLEET_WRONG_USE     /* an argument is out of range */
};

struct fleet_span {
    const uint8_t *data;
    size_t size;
};

#endif
