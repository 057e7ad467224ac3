/* Events on their way to the owner. A worker gathers those of one round and hands them over together. */
#ifndef HBONE_EVENT_H
#define HBONE_EVENT_H

#include "state.h"

/* The texts must be NUL-terminated except fields', whose sizes are used. Fields may be NULL. */
struct engine_event *event_new(enum event_type type, const char *const *texts, unsigned n_texts,
                               const struct field *fields, unsigned n_fields);
void event_post(struct worker *w, struct engine_event *event);
/* Events nobody waits for are not signalled before `event_hold`, unless others join them. */
void event_hand_over(struct worker *w);
void event_release(struct worker *w);
/* Failures and defects are told at a bounded rate, and counted without one. False: say nothing this time. */
bool event_may_tell(struct worker *w);
/* True when the owner does not take its events: no new flows then. */
bool event_backlog(const struct worker *w);

bool event_queue_init(struct event_queue *q);
struct engine_event *event_queue_take(struct event_queue *q, size_t limit);
void event_queue_free(struct event_queue *q);

#endif
