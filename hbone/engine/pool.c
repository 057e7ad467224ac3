#include "pool.h"

#include <errno.h>

#include "counted.h"
#include "flow.h"
#include "flow_end.h"
#include "pool_entry.h"
#include "socket.h"
#include "stream.h"
#include "transition.h"
#include "tunnel.h"

/* Before the peer's SETTINGS say how many streams it takes, no more than this. */
enum { STREAMS_UNGREETED = 8 };

/* ---- flows */

static void enqueue(struct flow *f, struct pool_entry *entry)
{
    const struct engine_config *c = &f->worker->engine->config;
    if (!flow_move(f, FLOW_POOLED))
        return;
    pool_join(f, entry);
    flow_set_timer(f, c->connect_timeout + c->handshake_timeout);
    pool_due(entry);
}

void pool_submit(struct flow *f)
{
    struct pool_entry *entry = pool_entry_for(f->worker, f->route);
    if (entry)
        enqueue(f, entry);
    else
        flow_out_of_memory(f);
}

void pool_retry(struct flow *f)
{
    COUNT(f->worker, pool_retries);
    f->retries++;
    stream_detach(f);
    if (flow_alive(f))
        pool_submit(f);
}

/* ---- balance */

static uint32_t stream_limit(const struct tunnel *t)
{
    uint32_t limit = (uint32_t)t->worker->engine->config.pool_streams;
    uint32_t told = t->greeted          ? t->peer_streams
                    : t->entry->greeted ? t->entry->peer_streams
                                        : STREAMS_UNGREETED;
    return limit < told ? limit : told;
}

static bool has_room(const struct tunnel *t)
{
    return t->state == TUNNEL_OPEN && !tunnel_suspect(t) && t->n_streams < stream_limit(t) && !pool_spent(t);
}

static struct tunnel *tunnel_with_room(struct pool_entry *entry)
{
    for (struct link *node = entry->tunnels.next; node != &entry->tunnels; node = node->next) {
        struct tunnel *t = container_of(node, struct tunnel, pooled);
        if (has_room(t))
            return t;
    }
    return NULL;
}

/* Streams that tunnels will take which are not ready for them yet. */
static unsigned promised(const struct pool_entry *entry)
{
    unsigned n = 0;
    for (struct link *node = entry->tunnels.next; node != &entry->tunnels; node = node->next) {
        const struct tunnel *t = container_of(node, struct tunnel, pooled);
        unsigned most = entry->greeted ? stream_limit(t) : (unsigned)t->worker->engine->config.pool_streams;
        if (tunnel_alive(t) && !t->greeted && t->n_streams < most)
            n += most - t->n_streams;
    }
    return n;
}

/* The next look at a flow that waits for its answer. */
static void watch_answer(struct flow *f)
{
    const struct engine_config *c = &f->worker->engine->config;
    uint64_t waited = f->worker->now - f->asked, left = c->response_timeout - waited;
    flow_set_timer(f, left < c->answer_patience ? left : c->answer_patience);
}

/* Nothing of the flow was relayed yet. What the peer may still make of the request ends with its stream. */
static void ask_elsewhere(struct flow *f)
{
    if (tunnel_reset_stream(f->stream.tunnel, f->stream.id, H2_CANCEL) && f->state == FLOW_ASKED)
        pool_retry(f);
}

void pool_unanswered(struct flow *f)
{
    const struct engine_config *c = &f->worker->engine->config;
    struct tunnel *t = f->stream.tunnel;
    uint64_t waited = f->worker->now - f->asked;
    bool silent = t->heard <= f->asked;
    if (waited >= c->response_timeout) {
        flow_abort(f, REASON_connect_timeout, ETIMEDOUT, H2_CANCEL);
        return;
    }
    bool leaving = t->goaway_got && waited >= 2 * c->answer_patience; /* some take the request and forget it */
    if (t->greeted && (leaving || (silent && tunnel_suspect(t))) && f->retries < POOL_RETRIES) {
        ask_elsewhere(f);
        return;
    }
    if (t->greeted && silent)
        tunnel_probe(t);
    if (f->state == FLOW_ASKED)
        watch_answer(f);
}

static void open_stream(struct flow *f, struct tunnel *t)
{
    const struct route *r = f->route;
    pool_take(f);
    if (!flow_move(f, FLOW_ASKED) || !stream_attach(f, t, t->next_id))
        return;
    t->next_id += 2;
    list_remove(&t->pooled); /* most recently used first: the others may fall idle */
    list_prepend(&t->entry->tunnels, &t->pooled);
    f->asked = f->worker->now;
    watch_answer(f);
    tunnel_headers(t, f->stream.id, route_block(r), r->block_size, false);
}

/* Those whom no other tunnel is about to serve, last come first. Dialling again and again for them would
 * only hammer a peer that does not answer. */
static void fail_unserved(struct pool_entry *entry, enum reason reason, int error)
{
    while (entry->n_waiting > promised(entry))
        flow_abort(container_of(entry->waiting.prev, struct flow, queue), reason, error, H2_CANCEL);
}

/* Dials until those who wait are provided for. */
static void dial_for(struct pool_entry *entry)
{
    const struct engine_config *c = &entry->worker->engine->config;
    if (entry->greeted && !entry->peer_streams) { /* it takes no streams at all: more tunnels do not help */
        fail_unserved(entry, REASON_stream_limit, 0);
        return;
    }
    while (entry->n_waiting > promised(entry) && entry->n_tunnels < c->pool_tunnels) {
        int error = 0;
        struct tunnel *t = tunnel_dial(entry, &error);
        if (!t) {
            fail_unserved(entry, connect_reason(-error), -error);
            return;
        }
        list_append(&entry->tunnels, &t->pooled);
        entry->n_tunnels++;
    }
}

static void balance(struct pool_entry *entry)
{
    struct tunnel *t;
    while (!list_empty(&entry->waiting) && (t = tunnel_with_room(entry))) {
        if (t->greeted)
            COUNT(entry->worker, pool_hits);
        open_stream(container_of(entry->waiting.next, struct flow, queue), t);
    }
    dial_for(entry);
}

/* An identity that was replaced and a namespace that was removed get no new streams: their tunnels go with
 * their last one. */
static bool is_over(const struct route *key)
{
    return atomic_load_explicit(&key->identity->replaced, memory_order_relaxed) ||
           (key->netns && atomic_load_explicit(&key->netns->removed, memory_order_relaxed));
}

static void retire_idle(struct pool_entry *entry)
{
    struct link *next;
    if (entry->n_waiting || !is_over(entry->key))
        return;
    for (struct link *node = entry->tunnels.next; node != &entry->tunnels; node = next) {
        struct tunnel *t = container_of(node, struct tunnel, pooled);
        next = node->next;
        if (t->state != TUNNEL_OPEN || t->n_streams)
            continue;
        COUNT(entry->worker, pool_retired);
        tunnel_finish(t);
    }
}

void pool_retire(struct worker *w)
{
    for (int i = 0; i < POOL_BUCKETS; i++)
        for (struct pool_entry *entry = w->pool[i]; entry; entry = entry->chain)
            pool_due(entry);
}

void pool_balance_due(struct worker *w)
{
    struct link *node;
    while ((node = list_pop(&w->due_pools))) {
        struct pool_entry *entry = container_of(node, struct pool_entry, due);
        balance(entry);
        retire_idle(entry);
        if (!entry->n_tunnels && !entry->n_waiting)
            pool_entry_free(entry);
    }
}

/* ---- tunnels that go */

/* An unanswered stream of a tunnel that had worked may be tried again: nothing of it was relayed. */
static bool may_retry(const struct tunnel *t, const struct flow *f, enum reason reason)
{
    return t->client && t->greeted && f->state == FLOW_ASKED && f->retries < POOL_RETRIES &&
           reason != REASON_shutdown;
}

static void end_streams(struct tunnel *t, enum reason reason, int error)
{
    for (int i = 0; i < STREAM_BUCKETS; i++) {
        while (t->streams[i]) {
            struct flow *f = t->streams[i];
            if (may_retry(t, f, reason))
                pool_retry(f);
            else
                flow_drop(f, reason, error);
        }
    }
}

/* A client's tunnel that took streams. One that says hello and leaves has failed: who dials for those who wait would
 * dial for ever. */
static bool was_of_use(const struct tunnel *t)
{
    return t->greeted && t->next_id > 1;
}

void pool_tunnel_ended(struct tunnel *t, struct pool_entry *entry, enum reason reason, int error)
{
    end_streams(t, reason, error);
    if (entry && !was_of_use(t) && reason != REASON_ok) /* those who wait must hear */
        fail_unserved(entry, reason, error);
    pool_due(entry);
}

void pool_peer_leaves(struct tunnel *t, uint32_t last)
{
    COUNT(t->worker, goaways_received);
    t->goaway_got = true;
    struct pool_entry *entry = t->entry;
    if (entry)
        pool_tunnel_gone(t);
    if (entry && !was_of_use(t))
        fail_unserved(entry, REASON_peer_goaway, 0);
    for (int i = 0; i < STREAM_BUCKETS; i++) {
        struct flow *next;
        for (struct flow *f = t->streams[i]; f; f = next) {
            next = f->stream.chain;
            if (!t->client || f->stream.id <= last)
                continue;
            if (may_retry(t, f, REASON_peer_goaway))
                pool_retry(f);
            else
                flow_drop(f, REASON_peer_goaway, 0);
        }
    }
    if (tunnel_alive(t) && !t->n_streams)
        tunnel_finish(t);
}

void pool_free(struct worker *w)
{
    for (int i = 0; i < POOL_BUCKETS; i++)
        while (w->pool[i])
            pool_entry_free(w->pool[i]);
}
