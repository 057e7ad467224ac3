/* Bytes into a plain socket, with what it does not take queued; its half-close, and its failure. */
#ifndef HBONE_PLAIN_WRITE_H
#define HBONE_PLAIN_WRITE_H

#include "state.h"

/* Writes pieces, or queues what the socket does not take; only when nothing is queued. The bytes taken by
 * the socket, or -1 when the flow ended over it. */
ssize_t plain_write(struct plain *p, struct iovec *pieces, int n);
/* Writes what is queued. False when the flow ended over it. */
bool plain_drain(struct plain *p);
/* No more bytes will come: passes the EOF on behind what is queued. */
void plain_end(struct plain *p);
/* Ends the flow for a socket's error. */
void plain_error(struct plain *p, int error);

#endif
