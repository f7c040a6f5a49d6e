/* The host's port layer: sockets, and flash that is a file. */
#ifndef FLEET_PORT_HOST_H
#define FLEET_PORT_HOST_H

/* Opens the flash in `path`, or makes one that is erased. 0, or -1.
 *
 * FLEET_CUT=N:EIGHTHS in the environment is a power cut in the Nth write or erasure: the process ends (exit code 9)
 * when so many eighths of it have been done. FLEET_READ_FAULT=N is a flash whose Nth read fails, FLEET_CHANGE_FAULT=N
 * one whose Nth write or erasure fails. */
int fleet_host_flash_open(const char *path);

/* Writes and erasures so far. */
unsigned long fleet_host_flash_changes(void);

#endif
