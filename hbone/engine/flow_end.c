#include "flow_end.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "counted.h"
#include "event.h"
#include "flow.h"
#include "flow_progress.h"
#include "flow_table.h"
#include "plain.h"
#include "pool_entry.h"
#include "stream.h"
#include "transition.h"
#include "wire.h"

/* ---- the one event */

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

/* ---- memory and numbers */

/* Everything but the announcement. The memory lives until the end of the round: events may point at it. */
void flow_bury(struct flow *f)
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

/* ---- ending */

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
