/* DATA payloads to plain sockets: gathered where they were read, written together. */
#ifndef HBONE_STREAM_RECEIVE_H
#define HBONE_STREAM_RECEIVE_H

#include "state.h"

/* A piece of a DATA payload in the read buffer; delivered before that is read into again. */
void stream_gather(struct flow *f, uint8_t *bytes, size_t size);
void stream_deliver(struct flow *f);
void stream_deliver_all(struct worker *w);
/* END_STREAM came. */
void stream_ended(struct flow *f);

#endif
