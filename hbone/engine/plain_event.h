/* What epoll says of a plain socket, and the relay between two of them. */
#ifndef HBONE_PLAIN_EVENT_H
#define HBONE_PLAIN_EVENT_H

#include "state.h"

void plain_on_event(struct plain *p, uint32_t events);
/* One turn of both directions between client and onward socket. */
void plain_relay(struct flow *f);

#endif
