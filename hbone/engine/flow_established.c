#include "flow_established.h"

#include "event.h"
#include "flow.h"
#include "flow_end.h"
#include "plain_write.h"
#include "stream.h"
#include "transition.h"

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
        flow_onward_connected(f->twin, headers);
    if (flow_alive(f))
        flow_ready(f);
}

void flow_onward_connected(struct flow *f, const struct header_list *headers)
{
    f->onward.connected = true;
    if (f->shape == SHAPE_HBONE)
        stream_answer_ok(f);
    if (flow_alive(f))
        flow_established(f, headers);
    if (flow_alive(f))
        plain_drain(&f->onward);
}
