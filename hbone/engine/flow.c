#include "flow.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "dial.h"
#include "event.h"
#include "flow_table.h"
#include "plain.h"
#include "pool.h"
#include "stream.h"
#include "transition.h"
#include "worker.h"

/* ---- birth and death */

static void plain_init(struct plain *p, struct flow *f)
{
    p->source = (struct source){SOURCE_PLAIN, -1};
    p->flow = f;
}

/* With everything that its end will need: no end fails for want of memory. */
static struct flow *flow_alloc(struct worker *w)
{
    if (!timer_reserve(&w->timers))
        return NULL;
    struct flow *f = calloc(1, sizeof *f);
    if (f && (f->slot = slot_take(w, f)))
        return f;
    free(f);
    timer_release(&w->timers);
    return NULL;
}

static struct flow *flow_new(struct worker *w, unsigned kind, uint32_t tag)
{
    struct engine *e = w->engine;
    if (atomic_load_explicit(&e->n_flows, memory_order_relaxed) >= e->config.max_flows) {
        COUNT(w, shed_flows);
        return NULL;
    }
    struct flow *f = flow_alloc(w);
    if (!f) {
        COUNT(w, shed_memory);
        return NULL;
    }
    f->worker = w;
    f->token = atomic_load_explicit(&f->slot->token, memory_order_relaxed);
    f->kind = (uint8_t)kind;
    f->tag = tag;
    f->born = w->now;
    f->timer.kind = TIMER_FLOW;
    plain_init(&f->client, f);
    plain_init(&f->onward, f);
    list_init(&f->queue);
    list_append(&w->flows, &f->link);
    atomic_fetch_add(&e->n_flows, 1);
    atomic_fetch_add_explicit(&w->load, 1, memory_order_relaxed);
    COUNT(w, flows_opened);
    flow_set_timer(f, e->config.decision_timeout);
    return f;
}

/* A flow of a kept verdict whose beginning was not told yet has one event for both. */
static struct engine_event *end_event(struct flow *f)
{
    struct engine_event *event = f->admitted;
    if (event) {
        event->type = EVENT_FINISHED;
        event->ended = event_clock();
        event->flow = NULL;
        f->admitted = NULL;
        return event;
    }
    if ((event = event_new(EVENT_CLOSED, NULL, 0, NULL, 0)))
        event_post(f->worker, event);
    return event;
}

static void say_end(struct engine_event *event, const struct flow *f, unsigned reason, int error)
{
    event->token = f->token;
    event->reason = (uint16_t)reason;
    event->status = f->status;
    event->error = error;
    event->from_client = stat_get(&f->slot->from_client);
    event->to_client = stat_get(&f->slot->to_client);
    event->established = f->established;
}

static void announce_end(struct flow *f, unsigned reason, int error)
{
    if (f->hidden || f->unknown)
        return;
    struct engine_event *event = end_event(f);
    if (event) {
        say_end(event, f, reason, error);
        return;
    }
    f->untold = true;
    f->doomed = (uint16_t)reason;
    f->doomed_error = error;
}

/* An owner has to hear of every end. Where there was no memory for the event, the flow's becomes it. */
static void tell_late(struct flow *f)
{
    struct worker *w = f->worker;
    struct engine_event event = {.type = EVENT_CLOSED};
    _Static_assert(sizeof event <= sizeof *f, "an event fits into a flow");
    say_end(&event, f, f->doomed, f->doomed_error);
    slot_release(w, f->slot);
    memcpy(f, &event, sizeof event);
    event_post(w, (struct engine_event *)f);
    event_release(w);
}

/* Everything but the announcement. The memory lives until the end of the round: events may point at it. */
static void flow_bury(struct flow *f)
{
    struct worker *w = f->worker;
    if (!flow_move(f, FLOW_DEAD))
        return;
    timer_clear(&w->timers, &f->timer);
    list_remove(&f->queue);
    list_remove(&f->link);
    list_append(&w->dead_flows, &f->link);
    if (f->gather) {
        f->gather->flow = NULL;
        f->gather = NULL;
    }
    if (!f->untold) { /* its slot has the counters still to be told */
        slot_release(w, f->slot);
        f->slot = NULL;
    }
    timer_release(&w->timers);
    atomic_fetch_sub(&w->engine->n_flows, 1);
    if (f->kind != LISTENER_HBONE && !f->hidden)
        atomic_fetch_sub(&w->engine->n_sockets[f->kind], 1);
    atomic_fetch_sub_explicit(&w->load, 1, memory_order_relaxed);
    COUNT(w, flows_closed);
}

void flow_free(struct flow *f)
{
    route_free(f->route);
    free(f->answer);
    if (f->untold)
        tell_late(f);
    else
        free(f);
}

/* The other half goes on by itself when this one ended in order: it has still to deliver, and its end of the pair
 * says when that is over. Otherwise it ends for the same reason, in a moment: the callers walk through lists. */
static void leave_twin(struct flow *f, unsigned reason, int error, bool reset)
{
    struct flow *other = f->twin;
    if (!other)
        return;
    f->twin = other->twin = NULL;
    if (!reset)
        return;
    other->doomed = (uint16_t)reason;
    other->doomed_error = error;
    flow_set_timer(other, 0);
}

static void end(struct flow *f, unsigned reason, int error, bool reset)
{
    if (f->doomed) {
        reason = f->doomed;
        error = f->doomed_error;
    }
    leave_twin(f, reason, error, reset);
    if (f->entry)
        pool_leave(f);
    plain_close(&f->client, reset);
    plain_close(&f->onward, reset);
    stream_detach(f);
    announce_end(f, reason, error);
    flow_bury(f);
}

void flow_drop(struct flow *f, unsigned reason, int error)
{
    if (flow_alive(f))
        end(f, reason, error, true);
}

/* A server's CANCEL is taken for the end of the stream by Istio's ztunnel, and what was cut short for whole. RFC 9113 8.5
 * has a code of its own for a connection that was broken off. */
static uint32_t abort_code(const struct flow *f, uint32_t code)
{
    return f->shape == SHAPE_HBONE && code == H2_CANCEL ? H2_CONNECT_ERROR : code;
}

void flow_abort(struct flow *f, unsigned reason, int error, uint32_t code)
{
    if (!flow_alive(f))
        return;
    if (f->shape == SHAPE_HBONE && !f->stream.answered)
        stream_answer_refused(f, f->status ? f->status : 503);
    else
        stream_reset(f, abort_code(f, code));
    if (flow_alive(f)) /* telling the peer may have ended its tunnel, and with it the flow */
        end(f, reason, error, true);
}

void flow_out_of_memory(struct flow *f)
{
    COUNT(f->worker, shed_memory);
    flow_abort(f, REASON_overload, ENOMEM, H2_INTERNAL_ERROR);
}

bool flow_announce(struct flow *f, struct engine_event *event)
{
    if (event) {
        event->token = f->token;
        event->tag = f->tag;
        event_post(f->worker, event);
        return true;
    }
    f->unknown = true;
    flow_out_of_memory(f);
    return false;
}

void flow_finish_if_done(struct flow *f)
{
    if (!flow_alive(f) || f->state != FLOW_RELAYING)
        return;
    bool done = f->shape == SHAPE_PLAIN ? f->client.sent_end && f->onward.sent_end
                                        : stream_sent_end(&f->stream) && flow_plain(f)->sent_end;
    if (done)
        end(f, REASON_ok, 0, false);
    else
        flow_watch_progress(f);
}

/* ---- where flows come from */

void flow_accepted(struct worker *w, int fd, const struct listener *l, const struct address *peer)
{
    struct flow *f = flow_new(w, l->kind, l->tag);
    if (f)
        atomic_fetch_add(&w->engine->n_sockets[l->kind], 1);
    if (!f || !plain_adopt(&f->client, fd)) {
        close_with_reset(fd);
        if (f)
            flow_bury(f);
        return;
    }
    struct address local;
    struct verdict_key key;
    address_of_socket(&local, NULL, fd);
    verdict_key_captured(&key, l->kind, l->tag, &local, peer);
    if (flow_by_kept_verdict(f, &key, peer))
        return;
    struct engine_event *event = event_new(EVENT_ACCEPTED, NULL, 0, NULL, 0);
    if (!flow_announce(f, event))
        return;
    event->kind = (uint8_t)l->kind;
    event->peer = *peer;
    event->local = local;
}

struct flow *flow_of_stream(struct tunnel *t, uint32_t id)
{
    struct flow *f = flow_new(t->worker, LISTENER_HBONE, t->tag);
    if (!f)
        return NULL;
    f->shape = SHAPE_HBONE;
    stream_attach(f, t, id);
    return f;
}

/* ---- verdicts */

/* The route may be that of a kept verdict, of which others live. False without memory. */
static bool take_answer(struct flow *f, const struct route *r)
{
    if (f->shape != SHAPE_HBONE || !r->block_size)
        return true;
    if (!(f->answer = malloc(sizeof *f->answer + r->block_size)))
        return false;
    f->answer->size = r->block_size;
    memcpy(f->answer->bytes, route_block(r), r->block_size);
    return true;
}

void flow_connect_plain(struct flow *f, const struct command *c)
{
    const struct route *r = c->route;
    if (f->state != FLOW_DECIDING)
        return;
    if (f->shape == SHAPE_UNDECIDED)
        f->shape = SHAPE_PLAIN;
    if (!flow_move(f, FLOW_CONNECTING))
        return;
    f->remote = r->destination;
    int fd = r->netns_gone ? -ENETUNREACH : dial(f->worker, &r->destination, r->netns, &c->source, r->mark);
    if (fd < 0) {
        flow_abort(f, connect_reason(-fd), -fd, H2_CANCEL);
        return;
    }
    if (!take_answer(f, r) || !plain_connecting(&f->onward, fd)) {
        close(fd);
        flow_out_of_memory(f);
        return;
    }
    flow_set_timer(f, f->worker->engine->config.connect_timeout);
}

static void submit(struct flow *f, struct command *c)
{
    f->route = c->route;
    c->route = NULL;
    pool_submit(f);
}

/* A stream that goes into a stream is two flows of this worker with a pair of sockets between them: this one, which
 * the owner knows, and a hidden one that looks like a captured connection. */
static void submit_twin(struct flow *f, struct command *c)
{
    int pair[2];
    if (!flow_move(f, FLOW_CONNECTING))
        return;
    struct flow *far = flow_new(f->worker, LISTENER_OUTBOUND, f->tag);
    if (!far) {
        flow_abort(f, REASON_overload, 0, H2_CANCEL);
        return;
    }
    far->hidden = true;
    atomic_store_explicit(&far->slot->token, 0, memory_order_release); /* no counters of its own */
    far->shape = SHAPE_OUTBOUND;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair)) {
        int error = errno;
        flow_bury(far);
        flow_abort(f, REASON_internal, error, H2_CANCEL);
        return;
    }
    if (!plain_adopt(&far->client, pair[0]) || !plain_connecting(&f->onward, pair[1])) {
        if (far->client.source.fd < 0)
            close(pair[0]);
        close(pair[1]);
        flow_drop(far, REASON_overload, ENOMEM);
        flow_out_of_memory(f);
        return;
    }
    f->twin = far;
    far->twin = f;
    timer_clear(&f->worker->timers, &f->timer); /* the far half has deadlines */
    submit(far, c);
}

void flow_connect_tunnel(struct flow *f, struct command *c)
{
    if (f->state != FLOW_DECIDING)
        return;
    if (f->shape == SHAPE_UNDECIDED)
        f->shape = SHAPE_OUTBOUND;
    if (c->route->netns_gone)
        flow_abort(f, REASON_connect_unreachable, ENETUNREACH, H2_CANCEL);
    else if (!c->route->identity)
        flow_abort(f, REASON_identity_unavailable, 0, H2_CANCEL);
    else if (f->shape == SHAPE_OUTBOUND)
        submit(f, c);
    else
        submit_twin(f, c);
}

/* The owner hears of it afterwards. False when it cannot: then the flow is over. */
static bool admit(struct flow *f, const struct verdict *v, const struct address *client)
{
    struct engine_event *event = event_new(EVENT_ADMITTED, NULL, 0, NULL, 0);
    if (!flow_announce(f, event))
        return false;
    event->verdict = v->number;
    event->peer = *client;
    event->flow = f;
    f->admitted = event;
    return true;
}

bool flow_by_kept_verdict(struct flow *f, const struct verdict_key *key, const struct address *client)
{
    struct verdict *v = verdict_find(f->worker, key);
    struct command c = {.route = NULL, .source = {.family = AF_UNSPEC}};
    if (!v)
        return false;
    if (!admit(f, v, client)) {
        verdict_unref(v);
        return true;
    }
    if (!v->tunnel) {
        c.route = v->route;
        c.source = v->source;
        flow_connect_plain(f, &c);
    } else if ((c.route = verdict_route(v, f->worker, client))) {
        flow_connect_tunnel(f, &c);
        route_free(c.route);
    } else {
        flow_out_of_memory(f);
    }
    verdict_unref(v);
    return true;
}

void flow_refuse(struct flow *f, unsigned reason, unsigned status)
{
    if (f->state != FLOW_DECIDING)
        return;
    if (f->shape == SHAPE_HBONE)
        f->status = (uint16_t)status;
    flow_abort(f, reason, 0, H2_CANCEL);
}

/* ---- in between */

/* How many pseudo-header fields stand before the others. */
static unsigned pseudo_fields(const struct header_list *list)
{
    unsigned n = 0;
    while (n < (unsigned)list->n && list->fields[n].name_size && list->fields[n].name[0] == ':')
        n++;
    return n;
}

static void announce_established(struct flow *f, const struct header_list *headers)
{
    const struct flow *far = f->twin ? f->twin : f;
    const struct tunnel *t = far->stream.tunnel;
    bool by_tunnel = far->shape == SHAPE_OUTBOUND;
    const char *identity = by_tunnel ? t->peer_identity : "";
    unsigned skip = headers ? pseudo_fields(headers) : 0;
    struct engine_event *event = event_new(EVENT_ESTABLISHED, &identity, 1, headers ? headers->fields + skip : NULL,
                                           headers ? (unsigned)headers->n - skip : 0);
    if (!event) {
        flow_out_of_memory(f);
        return;
    }
    event->token = f->token;
    if (by_tunnel) {
        event->local = t->local;
        event->peer = t->peer;
    } else {
        event->peer = f->remote;
        address_of_socket(&event->local, NULL, f->onward.source.fd);
    }
    event_post(f->worker, event);
}

void flow_established(struct flow *f, const struct header_list *headers)
{
    if (!flow_move(f, FLOW_RELAYING))
        return;
    f->established = true;
    if (!f->doomed)
        timer_clear(&f->worker->timers, &f->timer);
    if (f->admitted)
        f->admitted->established = true;
    else if (!f->hidden)
        announce_established(f, headers);
    else if (f->twin)
        plain_connected(&f->twin->onward, headers);
    if (flow_alive(f))
        flow_ready(f);
}

/* ---- time */

void flow_set_timer(struct flow *f, uint64_t milliseconds)
{
    timer_set(&f->worker->timers, &f->timer, f->worker->now + (f->doomed ? 0 : milliseconds));
}

static bool reader_stalls(const struct flow *f)
{
    return f->client.out.size || f->onward.out.size || f->starved;
}

static bool half_closed(const struct flow *f)
{
    return f->client.got_end || f->onward.got_end || stream_got_end(&f->stream);
}

static uint64_t bytes_moved(const struct flow *f)
{
    return stat_get(&f->slot->from_client) + stat_get(&f->slot->to_client);
}

void flow_watch_progress(struct flow *f)
{
    const struct engine_config *config = &f->worker->engine->config;
    if (f->state != FLOW_RELAYING || f->timer.index)
        return;
    f->moved = bytes_moved(f);
    if (reader_stalls(f))
        flow_set_timer(f, config->stall_timeout);
    else if (half_closed(f))
        flow_set_timer(f, config->half_close_timeout);
}

static void check_progress(struct flow *f)
{
    if (bytes_moved(f) != f->moved) {
        flow_watch_progress(f);
    } else if (reader_stalls(f)) {
        COUNT(f->worker, stalled_flows);
        flow_abort(f, REASON_stalled, 0, H2_CANCEL);
    } else if (half_closed(f)) {
        flow_abort(f, REASON_half_close_timeout, 0, H2_CANCEL);
    }
}

void flow_on_timer(struct flow *f)
{
    if (f->doomed) {
        flow_abort(f, f->doomed, f->doomed_error, H2_CANCEL);
        return;
    }
    switch (f->state) {
    case FLOW_DECIDING:
        flow_abort(f, REASON_decision_timeout, 0, H2_CANCEL);
        break;
    case FLOW_ASKED:
        pool_unanswered(f);
        break;
    case FLOW_CONNECTING:
        flow_abort(f, REASON_connect_timeout, ETIMEDOUT, H2_CANCEL);
        break;
    case FLOW_POOLED:
        flow_abort(f, pool_full(f) ? REASON_stream_limit : REASON_connect_timeout, ETIMEDOUT, H2_CANCEL);
        break;
    case FLOW_RELAYING:
        check_progress(f);
        break;
    default:
        break;
    }
}
