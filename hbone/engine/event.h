/* Events on their way to the owner. A worker gathers those of one round and hands them over together. */
#ifndef HBONE_EVENT_H
#define HBONE_EVENT_H

#include "state.h"

/* NULL without memory. The texts must be NUL-terminated except fields', whose sizes are used. Fields may be NULL. */
struct engine_event *event_new(enum event_type type, const char *const *texts, unsigned n_texts,
                               const struct field *fields, unsigned n_fields);
void event_post(struct worker *w, struct engine_event *event);
/* Says that this worker gives no kept verdict of an epoch up to this one any more. */
void event_forgotten(struct worker *w, uint64_t epoch);
/* Events nobody waits for stay with the worker for `event_hold`, unless others join them: a flow that ends meanwhile
 * is told of by one event instead of two. */
void event_hand_over(struct worker *w);
void event_release(struct worker *w); /* at the round's end */
/* Failures and defects are told at a bounded rate, and counted without one. False: say nothing this time. */
bool event_may_tell(struct worker *w);
uint64_t event_clock(void); /* nanoseconds of CLOCK_MONOTONIC */
/* True when the owner does not take its events: no new flows then. */
bool event_backlog(const struct worker *w);

bool event_queue_init(struct event_queue *q);
struct engine_event *event_queue_take(struct event_queue *q, size_t limit);
void event_queue_free(struct event_queue *q);

#endif
