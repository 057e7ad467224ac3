/* Flows: their beginning, and what everybody asks of them. */
#ifndef HBONE_FLOW_H
#define HBONE_FLOW_H

#include "state.h"

/* In DECIDING, with everything its end will need; NULL (and counted as shed) when it cannot be taken. */
struct flow *flow_new(struct worker *w, unsigned kind, uint32_t tag);

static inline bool flow_alive(const struct flow *f)
{
    return f->state != FLOW_DEAD;
}

/* Queues the flow for a turn of its pump. */
static inline void flow_ready(struct flow *f)
{
    if (!list_linked(&f->queue))
        list_append(&f->worker->ready, &f->queue);
}

/* The plain socket beside the stream. */
static inline struct plain *flow_plain(struct flow *f)
{
    return f->shape == SHAPE_HBONE ? &f->onward : &f->client;
}

static inline void flow_set_timer(struct flow *f, uint64_t milliseconds)
{
    timer_set(&f->worker->timers, &f->timer, f->worker->now + (f->doomed ? 0 : milliseconds));
}

#endif
