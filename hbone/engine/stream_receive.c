#include "stream_receive.h"

#include "flow.h"
#include "flow_end.h"
#include "plain_write.h"
#include "stream.h"
#include "stream_window.h"
#include "wire.h"

/* Too many bytes wait for slow readers: resets the slowest. */
static void relieve(struct tunnel *t)
{
    struct flow *slowest = NULL;
    for (int i = 0; i < STREAM_BUCKETS; i++)
        for (struct flow *f = t->streams[i]; f; f = f->stream.chain)
            if (!slowest || flow_plain(f)->out.size > flow_plain(slowest)->out.size)
                slowest = f;
    COUNT(t->worker, abuse_buffer);
    if (slowest)
        flow_abort(slowest, REASON_stalled, 0, H2_CANCEL);
}

/* Hands the gathered pieces to the socket. */
static void deliver(struct gather *g)
{
    struct flow *f = g->flow;
    if (!f)
        return;
    struct plain *p = flow_plain(f);
    struct tunnel *t = f->stream.tunnel;
    f->gather = NULL;
    g->flow = NULL;
    if (!g->n || p->sent_end)
        return;
    ssize_t sent = plain_write(p, g->pieces, g->n);
    if (sent < 0)
        return;
    if (sent)
        stream_delivered(f, p, (size_t)sent, false);
    if (t && t->buffered > f->worker->engine->config.tunnel_buffer_max)
        relieve(t);
}

void stream_deliver(struct flow *f)
{
    if (f->gather)
        deliver(f->gather);
}

void stream_deliver_all(struct worker *w)
{
    int n = w->n_gathers;
    for (int i = 0; i < n; i++)
        deliver(&w->gathers[i]);
    w->n_gathers = 0;
}

static struct gather *gather_of(struct flow *f)
{
    struct worker *w = f->worker;
    if (f->gather && f->gather->n == GATHER_PIECES)
        deliver(f->gather);
    if (f->gather || !flow_alive(f))
        return f->gather;
    if (w->n_gathers == GATHERS)
        stream_deliver_all(w);
    if (!flow_alive(f))
        return NULL;
    struct gather *g = &w->gathers[w->n_gathers++];
    g->flow = f;
    g->n = 0;
    f->gather = g;
    return g;
}

void stream_gather(struct flow *f, uint8_t *bytes, size_t size)
{
    struct gather *g = gather_of(f);
    if (!g)
        return;
    struct iovec *last = g->n ? &g->pieces[g->n - 1] : NULL;
    if (last && (uint8_t *)last->iov_base + last->iov_len == bytes)
        last->iov_len += size;
    else
        g->pieces[g->n++] = (struct iovec){bytes, size};
}

void stream_ended(struct flow *f)
{
    stream_note_end(&f->stream);
    stream_deliver(f);
    if (flow_alive(f))
        plain_end(flow_plain(f));
}
