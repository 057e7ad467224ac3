/* Tokens: opaque to the owner; generation, worker and slot to us. A slot's counters may be read by another
 * thread at any time, so slots are never freed before the engine is. */
#ifndef HBONE_FLOW_TABLE_H
#define HBONE_FLOW_TABLE_H

#include "state.h"

/* A slot for a new flow, its token set; NULL without memory or when the table is full. */
struct slot *slot_take(struct worker *w, struct flow *f);
void slot_release(struct worker *w, struct slot *s);
/* The live flow a token names, or NULL. */
struct flow *flow_by_token(struct worker *w, uint64_t token);
unsigned token_worker(uint64_t token);
/* Appends changed counters of one worker; the number appended. For one reader at a time. */
size_t flow_table_counters(struct flow_table *t, struct engine_counter *out, size_t room);
void flow_table_free(struct flow_table *t);

#endif
