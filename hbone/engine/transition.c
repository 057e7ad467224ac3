#include "transition.h"

#include "event.h"

static void tell(struct worker *w, uint32_t tag, int machine, unsigned from, unsigned to)
{
    char text[128];
    const char *detail = text;
    COUNT(w, defects);
    if (!event_may_tell(w))
        return;
    machine_forbids(text, sizeof text, machine, from, to);
    struct engine_event *event = event_new(EVENT_DEFECT, &detail, 1, NULL, 0);
    if (!event)
        return;
    event->tag = tag;
    event_post(w, event);
}

/* Not at once: the callers walk through lists. One that is dead already is left in peace. */
static void end_flow(struct flow *f, int machine, unsigned from, unsigned to)
{
    tell(f->worker, f->tag, machine, from, to);
    if (f->state == FLOW_DEAD)
        return;
    f->doomed = REASON_internal;
    f->doomed_error = 0;
    timer_set(&f->worker->timers, &f->timer, f->worker->now);
}

static void end_tunnel(struct tunnel *t, int machine, unsigned from, unsigned to)
{
    tell(t->worker, t->tag, machine, from, to);
    if (t->state == TUNNEL_DEAD)
        return;
    t->defective = true;
    timer_set(&t->worker->timers, &t->timer, t->worker->now);
}

bool flow_move(struct flow *f, enum flow_state to)
{
    bool allowed = flow_move_allowed(f->state, to);
    if (allowed)
        f->state = (uint8_t)to;
    else
        end_flow(f, MACHINE_flow, f->state, to);
    return allowed;
}

bool stream_move(struct stream *s, enum stream_state to)
{
    bool allowed = stream_move_allowed(s->state, to);
    if (allowed)
        s->state = (uint8_t)to;
    else
        end_flow(container_of(s, struct flow, stream), MACHINE_stream, s->state, to);
    return allowed;
}

bool tunnel_move(struct tunnel *t, enum tunnel_state to)
{
    bool allowed = tunnel_move_allowed(t->state, to);
    if (allowed)
        t->state = (uint8_t)to;
    else
        end_tunnel(t, MACHINE_tunnel, t->state, to);
    return allowed;
}

bool drain_move(struct tunnel *t, enum drain_state to)
{
    bool allowed = drain_move_allowed(t->drain, to);
    if (allowed)
        t->drain = (uint8_t)to;
    else
        end_tunnel(t, MACHINE_drain, t->drain, to);
    return allowed;
}
