#include "slots.h"

#include <string.h>

#include "crypto.h"
#include "port.h"

/* Key sector:   magic 4, size 4, SHA-256 of the key 32, key
 * Chain sector: record (magic 4, generation 4, key size 4, chain size 4, SHA-256 of the key 32, of the chain 32, of
 *               all before 32), chain */
#define HASH 32u
#define RECORD 112u
#define RECORD_HASHED (RECORD - HASH)
#define KEY_HEAD 40u
#define UNITS(size) (((size) + FLEET_FLASH_UNIT - 1u) / FLEET_FLASH_UNIT * FLEET_FLASH_UNIT)
#define KEY_MAGIC 0x464B4531u   /* "FKE1": another layout takes another number */
#define CHAIN_MAGIC 0x46434831u /* "FCH1" */

typedef char fits_in_sector[RECORD + UNITS(FLEET_CHAIN_MAX) <= FLEET_SECTOR_SIZE ? 1 : -1];
typedef char aligned_parts[RECORD % FLEET_FLASH_UNIT == 0 ? 1 : -1];

static uint32_t key_sector(int slot)
{
    return (uint32_t)slot * 2u;
}

static uint32_t chain_sector(int slot)
{
    return (uint32_t)slot * 2u + 1u;
}

static void put_u32(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 24);
    at[1] = (uint8_t)(value >> 16);
    at[2] = (uint8_t)(value >> 8);
    at[3] = (uint8_t)value;
}

static uint32_t u32(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

/* Writes in units, filled up with 0xFF, and reads each back. */
static int write_checked(uint32_t offset, const uint8_t *data, size_t size)
{
    uint8_t unit[64], read[64];
    size_t part;

    for (; size; data += part, size -= part, offset += (uint32_t)part) {
        part = size < sizeof unit ? size : sizeof unit;
        memset(unit, 0xFF, sizeof unit);
        memcpy(unit, data, part);
        if (fleet_port_flash_write(offset, unit, UNITS(part)) || fleet_port_flash_read(offset, read, UNITS(part)) ||
            memcmp(unit, read, UNITS(part))) {
            fleet_wipe(unit, sizeof unit);
            fleet_wipe(read, sizeof read);
            return FLEET_FLASH;
        }
    }
    fleet_wipe(unit, sizeof unit);
    fleet_wipe(read, sizeof read);
    return FLEET_OK;
}

int fleet_slots_read_key(int slot, struct fleet_identity *into)
{
    uint32_t offset = key_sector(slot) * FLEET_SECTOR_SIZE;
    uint8_t head[KEY_HEAD], hash[HASH];

    into->key_size = 0;
    if (fleet_port_flash_read(offset, head, sizeof head))
        return FLEET_FLASH;
    if (u32(head) != KEY_MAGIC || u32(head + 4) > FLEET_KEY_MAX)
        return FLEET_NOT_ENROLLED;
    if (fleet_port_flash_read(offset + KEY_HEAD, into->key, u32(head + 4)))
        return FLEET_FLASH;
    if (fleet_sha256(into->key, u32(head + 4), hash))
        return FLEET_CRYPTO;
    if (memcmp(hash, head + 8, HASH))
        return FLEET_NOT_ENROLLED;
    into->key_size = u32(head + 4);
    return FLEET_OK;
}

int fleet_slots_read(int slot, struct fleet_identity *into)
{
    uint32_t offset = chain_sector(slot) * FLEET_SECTOR_SIZE;
    uint8_t record[RECORD], hash[HASH], chain_hash[HASH];
    int result = fleet_slots_read_key(slot, into);

    into->chain_size = 0;
    if (result)
        return result;
    if (fleet_port_flash_read(offset, record, sizeof record))
        return FLEET_FLASH;
    if (fleet_sha256(record, RECORD_HASHED, hash))
        return FLEET_CRYPTO;
    if (u32(record) != CHAIN_MAGIC || memcmp(hash, record + RECORD_HASHED, HASH) ||
        u32(record + 8) != into->key_size || u32(record + 12) > FLEET_CHAIN_MAX)
        return FLEET_NOT_ENROLLED;
    if (fleet_port_flash_read(offset + RECORD, into->chain, u32(record + 12)))
        return FLEET_FLASH;
    if (fleet_sha256(into->key, into->key_size, hash) ||
        fleet_sha256(into->chain, u32(record + 12), chain_hash))
        return FLEET_CRYPTO;
    if (memcmp(hash, record + 16, HASH) || memcmp(chain_hash, record + 48, HASH))
        return FLEET_NOT_ENROLLED;
    into->generation = u32(record + 4);
    into->chain_size = u32(record + 12);
    return FLEET_OK;
}

int fleet_slots_find(int *current, int *candidate, struct fleet_identity *into)
{
    uint32_t generations[FLEET_SLOTS];
    int slot, complete[FLEET_SLOTS], result, status = FLEET_OK;

    for (slot = 0; slot < FLEET_SLOTS; slot++) {
        result = fleet_slots_read(slot, into);
        complete[slot] = !result;
        if (result && result != FLEET_NOT_ENROLLED) /* it may well be complete */
            status = result;
        generations[slot] = into->generation;
        fleet_wipe(into, sizeof *into);
    }
    *candidate = -1;
    *current = complete[0] ? 0 : complete[1] ? 1 : -1;
    if (complete[0] && complete[1]) {
        *candidate = generations[1] > generations[0];
        *current = !*candidate;
    }
    return status;
}

int fleet_slots_erase(int slot)
{
    /* The key first: a key without a record would be taken for that of an enrollment that did not end. */
    return fleet_port_flash_erase(key_sector(slot)) || fleet_port_flash_erase(chain_sector(slot)) ? FLEET_FLASH
                                                                                                  : FLEET_OK;
}

int fleet_slots_keep_key(int slot, const struct fleet_identity *identity)
{
    uint8_t part[KEY_HEAD + FLEET_KEY_MAX];
    int result;

    if (identity->key_size > FLEET_KEY_MAX)
        return FLEET_WRONG_USE;
    put_u32(part, KEY_MAGIC);
    put_u32(part + 4, (uint32_t)identity->key_size);
    if (fleet_sha256(identity->key, identity->key_size, part + 8))
        return FLEET_CRYPTO;
    memcpy(part + KEY_HEAD, identity->key, identity->key_size);
    result = fleet_slots_erase(slot);
    if (!result)
        result = write_checked(key_sector(slot) * FLEET_SECTOR_SIZE, part, KEY_HEAD + identity->key_size);
    fleet_wipe(part, sizeof part);
    return result;
}

int fleet_slots_keep_chain(int slot, const struct fleet_identity *identity)
{
    uint32_t offset = chain_sector(slot) * FLEET_SECTOR_SIZE;
    uint8_t record[RECORD];
    int result;

    if (identity->chain_size > FLEET_CHAIN_MAX)
        return FLEET_WRONG_USE;
    put_u32(record, CHAIN_MAGIC);
    put_u32(record + 4, identity->generation);
    put_u32(record + 8, (uint32_t)identity->key_size);
    put_u32(record + 12, (uint32_t)identity->chain_size);
    if (fleet_sha256(identity->key, identity->key_size, record + 16) ||
        fleet_sha256(identity->chain, identity->chain_size, record + 48) ||
        fleet_sha256(record, RECORD_HASHED, record + RECORD_HASHED))
        return FLEET_CRYPTO;
    if (fleet_port_flash_erase(chain_sector(slot))) /* what a power loss has left of an earlier attempt */
        return FLEET_FLASH;
    result = write_checked(offset + RECORD, identity->chain, identity->chain_size);
    return result ? result : write_checked(offset, record, RECORD);
}
