#include "stream.h"

#include <stdlib.h>

#include "flow.h"
#include "hpack.h"
#include "transition.h"
#include "tunnel.h"

/* ---- on and off a tunnel */

static struct flow **bucket(struct tunnel *t, uint32_t id)
{
    return &t->streams[(id >> 1) % STREAM_BUCKETS];
}

struct flow *stream_find(const struct tunnel *t, uint32_t id)
{
    struct flow *f = t->streams[(id >> 1) % STREAM_BUCKETS];
    while (f && f->stream.id != id)
        f = f->stream.chain;
    return f;
}

bool stream_attach(struct flow *f, struct tunnel *t, uint32_t id)
{
    struct stream *s = &f->stream;
    if (!stream_move(s, STREAM_OPEN))
        return false;
    *s = (struct stream){.tunnel = t, .id = id, .chain = *bucket(t, id), .state = STREAM_OPEN};
    s->send_window = t->peer_window;
    s->recv_window = s->recv_target = (uint32_t)t->worker->engine->config.stream_window;
    *bucket(t, id) = f;
    t->n_streams++;
    return true;
}

void stream_detach(struct flow *f)
{
    struct tunnel *t = f->stream.tunnel;
    if (!t)
        return;
    struct flow **p = bucket(t, f->stream.id);
    while (*p != f)
        p = &(*p)->stream.chain;
    *p = f->stream.chain;
    if (t->in.flow == f)
        t->in.flow = NULL;
    list_remove(&f->queue); /* it may be among the starved */
    if (!stream_got_end(&f->stream))
        t->forgotten[t->forgotten_at++ % FORGOTTEN_STREAMS] = f->stream.id;
    f->stream.tunnel = NULL;
    if (!stream_move(&f->stream, STREAM_NONE))
        f->stream.state = STREAM_NONE; /* it is off the tunnel all the same */
    t->buffered -= flow_plain(f)->out.size;
    t->n_streams--;
    tunnel_stream_left(t);
}

/* ---- the answer */

void stream_answer_ok(struct flow *f)
{
    uint8_t block[8];
    size_t size = 0;
    struct answer *more = f->answer;
    hpack_encode_status(block, &size, sizeof block, 200);
    f->status = 200;
    f->stream.answered = true;
    f->answer = NULL;
    tunnel_headers(f->stream.tunnel, f->stream.id, more ? more->bytes : block, more ? more->size : size, false);
    free(more);
}

void stream_answer_refused(struct flow *f, unsigned status)
{
    struct tunnel *t = f->stream.tunnel;
    uint8_t block[8];
    size_t size = 0;
    if (!t)
        return;
    f->status = (uint16_t)status;
    hpack_encode_status(block, &size, sizeof block, status);
    tunnel_headers(t, f->stream.id, block, size, true);
    if (!f->stream.tunnel)
        return; /* the tunnel ended over it */
    /* RFC 9113 8.1: the answer is complete; the request need not be */
    if (!stream_got_end(&f->stream))
        tunnel_reset_stream(t, f->stream.id, H2_NO_ERROR);
    stream_detach(f);
}

void stream_reset(struct flow *f, uint32_t code)
{
    struct tunnel *t = f->stream.tunnel;
    if (!t)
        return;
    if (!(stream_got_end(&f->stream) && stream_sent_end(&f->stream)))
        tunnel_reset_stream(t, f->stream.id, code);
    stream_detach(f);
}
