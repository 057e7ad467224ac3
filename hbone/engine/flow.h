/* The life of a flow: from accept or CONNECT, by the owner's verdict, to its one Closed event. */
#ifndef HBONE_FLOW_H
#define HBONE_FLOW_H

#include "command.h"
#include "state.h"
#include "verdict.h"

/* A captured connection was accepted. Takes the descriptor. */
void flow_accepted(struct worker *w, int fd, const struct listener *l, const struct address *peer);
/* A CONNECT stream of a server tunnel; NULL when it cannot be taken. Not yet announced. */
struct flow *flow_of_stream(struct tunnel *t, uint32_t id);

/* Goes the way of a kept verdict, if there is one for the key; the flow may be over then. */
bool flow_by_kept_verdict(struct flow *f, const struct verdict_key *key, const struct address *client);

/* Verdicts. */
void flow_connect_plain(struct flow *f, const struct command *c);
void flow_connect_tunnel(struct flow *f, struct command *c); /* takes c->route */
void flow_refuse(struct flow *f, unsigned reason, unsigned status);

/* Both legs are up. `headers` are those of the peer's answer, or NULL. */
void flow_established(struct flow *f, const struct header_list *headers);

/* Ends the flow: sockets are reset, the stream is answered (if it was not) or reset with `code`. */
void flow_abort(struct flow *f, unsigned reason, int error, uint32_t code);
/* Ends the flow without a word to its tunnel, which is gone or was told already. */
void flow_drop(struct flow *f, unsigned reason, int error);
/* Aborts it for want of memory. */
void flow_out_of_memory(struct flow *f);
/* Posts the event that a flow begins with, for the caller to fill in the rest. False: there is none (NULL), for want of
 * memory, so nobody will ever hear of the flow; it is over. */
bool flow_announce(struct flow *f, struct engine_event *event);
/* Ends the flow in order when both directions have. */
void flow_finish_if_done(struct flow *f);

void flow_set_timer(struct flow *f, uint64_t milliseconds);
/* Arms the progress check of a relaying flow: half-closed, or a reader that takes nothing. */
void flow_watch_progress(struct flow *f);
void flow_on_timer(struct flow *f);
void flow_free(struct flow *f);

/* Queues the flow for a turn of its pump. */
static inline void flow_ready(struct flow *f)
{
    if (!list_linked(&f->queue))
        list_append(&f->worker->ready, &f->queue);
}

static inline bool flow_alive(const struct flow *f)
{
    return f->state != FLOW_DEAD;
}

/* The plain socket beside the stream. */
static inline struct plain *flow_plain(struct flow *f)
{
    return f->shape == SHAPE_HBONE ? &f->onward : &f->client;
}

static inline void count_bytes(_Atomic uint64_t *counter, size_t n)
{
    stat_add(counter, n);
}

#endif
