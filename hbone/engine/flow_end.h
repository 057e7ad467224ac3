/* How flows end, each with one event: in order, by failure, or with their tunnel. */
#ifndef HBONE_FLOW_END_H
#define HBONE_FLOW_END_H

#include "state.h"

/* Ends the flow: sockets are reset, the stream is answered (if it was not) or reset with `code`. */
void flow_abort(struct flow *f, unsigned reason, int error, uint32_t code);
/* Ends the flow without a word to its tunnel, which is gone or was told already. */
void flow_drop(struct flow *f, unsigned reason, int error);
/* Aborts it for want of memory. */
void flow_out_of_memory(struct flow *f);
/* Ends the flow in order when both directions have. */
void flow_finish_if_done(struct flow *f);

/* Posts the event that a flow begins with, for the caller to fill in the rest. False: there is none (NULL), for want of
 * memory, so nobody will ever hear of the flow; it is over. */
bool flow_announce(struct flow *f, struct engine_event *event);
/* Everything but the announcement, for a flow that nobody has heard of. */
void flow_bury(struct flow *f);
void flow_free(struct flow *f);

#endif
