/* What epoll says of a tunnel's socket. */
#ifndef HBONE_TUNNEL_EVENT_H
#define HBONE_TUNNEL_EVENT_H

#include "state.h"

void tunnel_on_event(struct tunnel *t, uint32_t events);
/* Takes its turns of what the socket has. */
void tunnel_read(struct tunnel *t);

#endif
