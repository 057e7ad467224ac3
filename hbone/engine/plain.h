/* Plain TCP sockets of flows: taken, and given back. */
#ifndef HBONE_PLAIN_H
#define HBONE_PLAIN_H

#include "state.h"

/* Starts to watch a connected, or connecting, socket. False (and not taken) when epoll refuses. */
bool plain_adopt(struct plain *p, int fd);
bool plain_connecting(struct plain *p, int fd);
void plain_close(struct plain *p, bool reset);

#endif
