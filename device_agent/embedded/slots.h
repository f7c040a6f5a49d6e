/* Two slots in flash for the device's key and certificate, with the crash rule of the Python agent's store.
 *
 * A slot has two sectors. The first holds the key, alone, so that a certificate that was cut off can be written again
 * beside the same key, which the server knows already. The second holds the chain, and a record, written last, with
 * hashes over both: a slot counts only if all of it is there. Of two complete slots, the later generation is the
 * candidate: its predecessor is erased only once a connection has proven it.
 */
#ifndef FLEET_SLOTS_H
#define FLEET_SLOTS_H

#include "bounds.h"

#define FLEET_SLOTS 2

struct fleet_identity {
    uint32_t generation; /* 1 for the first */
    size_t key_size, chain_size;
    uint8_t key[FLEET_KEY_MAX];     /* DER, RFC 5915 */
    uint8_t chain[FLEET_CHAIN_MAX]; /* certificates in DER, the device's first */
};

/* The slot in use, and the one that is not proven yet; -1 for none. `into` is used for reading, and wiped. FLEET_OK; or
 * FLEET_FLASH or FLEET_CRYPTO if a slot could not be read, which is not an incomplete one: `current`, the other then,
 * will do for a connection, but nothing may be written or erased. */
int fleet_slots_find(int *current, int *candidate, struct fleet_identity *into);

/* FLEET_OK, FLEET_NOT_ENROLLED if the slot is not complete, FLEET_FLASH, FLEET_CRYPTO. */
int fleet_slots_read(int slot, struct fleet_identity *into);

/* The key of an enrollment that did not end; FLEET_NOT_ENROLLED if there is none. */
int fleet_slots_read_key(int slot, struct fleet_identity *into);

/* Erases the slot, then stores the key. It must be kept before it is used: the server binds a token to it. */
int fleet_slots_keep_key(int slot, const struct fleet_identity *identity);

/* Stores chain and record beside the key: the slot is complete. */
int fleet_slots_keep_chain(int slot, const struct fleet_identity *identity);

int fleet_slots_erase(int slot);

#endif
