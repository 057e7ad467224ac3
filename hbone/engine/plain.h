/* Plain TCP sockets of flows: reading, writing, half-close, and the relay between two of them. */
#ifndef HBONE_PLAIN_H
#define HBONE_PLAIN_H

#include "state.h"

/* Starts to watch a connected, or connecting, socket. False (and not taken) when epoll refuses. */
bool plain_adopt(struct plain *p, int fd);
bool plain_connecting(struct plain *p, int fd);
void plain_close(struct plain *p, bool reset);
void close_with_reset(int fd);

void plain_on_event(struct plain *p, uint32_t events);
/* Writes pieces, or queues what the socket does not take; only when nothing is queued. The bytes taken by
 * the socket, or -1 when the flow ended over it. */
ssize_t plain_write(struct plain *p, struct iovec *pieces, int n);
/* No more bytes will come: passes the EOF on behind what is queued. */
void plain_end(struct plain *p);
/* Ends the flow for a socket's error. */
void plain_error(struct plain *p, int error);
/* One turn of both directions between client and onward socket. */
void plain_relay(struct flow *f);

/* The onward socket stands: answers the stream and lets waiting bytes out. `headers` of the far answer, or NULL. */
void plain_connected(struct plain *p, const struct header_list *headers);

#endif
