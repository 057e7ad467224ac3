#include "stream_window.h"

#include "flow.h"
#include "stream.h"
#include "tunnel.h"
#include "window.h"
#include "wire.h"

static void give_window(struct flow *f, uint32_t n)
{
    uint8_t body[4];
    put_u32(body, n);
    tunnel_frame(f->stream.tunnel, FRAME_WINDOW_UPDATE, 0, f->stream.id, body, sizeof body);
}

void stream_credit(struct flow *f, size_t n, bool keeps_up)
{
    struct stream *s = &f->stream;
    s->uncredited += (uint32_t)n;
    if (stream_got_end(s) || !s->tunnel)
        return;
    uint32_t most = (uint32_t)f->worker->engine->config.stream_window_max;
    uint32_t credit = window_credit(&s->uncredited, &s->recv_target, most, keeps_up);
    s->recv_window += credit;
    if (credit)
        give_window(f, credit);
}

void stream_delivered(struct flow *f, struct plain *p, size_t n, bool queued)
{
    if (f->shape == SHAPE_PLAIN || p != flow_plain(f))
        return;
    stat_add(f->shape == SHAPE_HBONE ? &f->slot->from_client : &f->slot->to_client, n);
    if (queued && f->stream.tunnel)
        f->stream.tunnel->buffered -= n;
    stream_credit(f, n, !queued && !p->out.size);
}
