/* Credit that a stream's peer gets back for what it sent. */
#ifndef HBONE_STREAM_WINDOW_H
#define HBONE_STREAM_WINDOW_H

#include "state.h"

/* Bytes reached the socket `p` (out of its queue or not): gives credit back to the peer. */
void stream_delivered(struct flow *f, struct plain *p, size_t n, bool queued);
/* Gives credit back; `keeps_up` lets the window grow. */
void stream_credit(struct flow *f, size_t n, bool keeps_up);

#endif
