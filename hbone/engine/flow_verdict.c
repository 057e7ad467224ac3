#include "flow_verdict.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "counted.h"
#include "dial.h"
#include "event.h"
#include "flow.h"
#include "flow_end.h"
#include "plain.h"
#include "pool.h"
#include "socket.h"
#include "transition.h"
#include "wire.h"

/* ---- ways */

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

void flow_refuse(struct flow *f, unsigned reason, unsigned status)
{
    if (f->state != FLOW_DECIDING)
        return;
    if (f->shape == SHAPE_HBONE)
        f->status = (uint16_t)status;
    flow_abort(f, reason, 0, H2_CANCEL);
}

/* ---- kept verdicts */

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

/* ---- arrival */

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
