/* Port layer: what a board provides. Everything else here is plain C99.
 *
 * One TCP connection at a time. No function is called from an interrupt, and none needs to be reentrant.
 */
#ifndef FLEET_PORT_H
#define FLEET_PORT_H

#include <stddef.h>
#include <stdint.h>

/* Connects to host:port. 0, or -1. */
int fleet_port_connect(const char *host, uint16_t port);

/* Up to `size` bytes: their number; 0 if none came within `wait_ms`; -1 if the connection is closed or broken. */
int fleet_port_read(uint8_t *data, size_t size, uint32_t wait_ms);

/* The number of bytes taken, at least 1; 0 if none could be taken within a second; -1 if the connection is broken. */
int fleet_port_write(const uint8_t *data, size_t size);

void fleet_port_close(void);

/* FLEET_FLASH_SIZE bytes (bounds.h), from offset 0. Each returns 0, or -1.
 *
 * A write is aligned to FLEET_FLASH_UNIT, a multiple of it, and only to bytes that have been erased; each unit is
 * written once between two erasures, as flash with ECC demands. A write or an erasure that loses power may leave
 * anything in its own range, and must leave the rest as it was.
 *
 * A read that fails is tried again by a later call, and until it succeeds nothing is written or erased. What can never be
 * read again before it is erased (a unit whose ECC a power loss has left wrong) is therefore read as any bytes, with 0.
 */
int fleet_port_flash_read(uint32_t offset, uint8_t *data, size_t size);
int fleet_port_flash_write(uint32_t offset, const uint8_t *data, size_t size);
int fleet_port_flash_erase(uint32_t sector); /* to 0xFF: the FLEET_SECTOR_SIZE bytes of this sector */

/* Bytes of a true random number generator, for seeds. 0, or -1. */
int fleet_port_random(uint8_t *data, size_t size);

/* UTC, in seconds since 1970; 0 if the clock is not set. */
uint64_t fleet_port_time(void);

/* Milliseconds since some start; wraps around. */
uint32_t fleet_port_ticks_ms(void);

#endif
