/* Changes of state, checked against the tables of machine.h.
 *
 * True: the change is made. False: the table does not have it. That is a defect of the engine; it is counted and told
 * (EVENT_DEFECT), nothing is changed, and the flow or tunnel ends with the reason "internal" in a moment, by its
 * timer. The caller returns at once, with everything still as the old state has it. */
#ifndef HBONE_TRANSITION_H
#define HBONE_TRANSITION_H

#include "state.h"

bool flow_move(struct flow *f, enum flow_state to);
/* The stream of a flow: the flow ends. */
bool stream_move(struct stream *s, enum stream_state to);
bool tunnel_move(struct tunnel *t, enum tunnel_state to);
bool drain_move(struct tunnel *t, enum drain_state to);

#endif
