#include "stream.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "flow.h"
#include "plain.h"
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

/* ---- plain socket -> stream */

static void starve(struct flow *f)
{
    list_remove(&f->queue);
    list_append(&f->stream.tunnel->starved, &f->queue);
}

/* Frames of one read: each piece has its frame header's room before it. The bytes asked for. */
static uint32_t plan_frames(const struct tunnel *t, uint8_t *start, size_t room, uint32_t limit,
                            struct iovec *pieces, int *n)
{
    uint32_t asked = 0;
    for (*n = 0; *n < GATHER_PIECES && asked < limit && room > FRAME_HEADER; ++*n) {
        uint32_t size = limit - asked;
        if (size > t->peer_frame)
            size = t->peer_frame;
        if (size > room - FRAME_HEADER)
            size = (uint32_t)(room - FRAME_HEADER);
        pieces[*n] = (struct iovec){start + FRAME_HEADER, size};
        start += FRAME_HEADER + size;
        room -= FRAME_HEADER + size;
        asked += size;
    }
    return asked;
}

/* Puts the headers before what was read. */
static void frame_up(struct tunnel *t, uint32_t id, const struct iovec *pieces, size_t got)
{
    for (int i = 0; got; i++) {
        size_t size = pieces[i].iov_len < got ? pieces[i].iov_len : got;
        put_frame_header((uint8_t *)pieces[i].iov_base - FRAME_HEADER, (uint32_t)size, FRAME_DATA, 0, id);
        t->plain_size += FRAME_HEADER + size;
        t->budgets.window_updates += WINDOW_UPDATES_PER_DATA;
        got -= size;
    }
    tunnel_mark(t);
}

static void end_stream(struct flow *f)
{
    struct tunnel *t = f->stream.tunnel;
    stream_note_sent_end(&f->stream);
    if (tunnel_frame(t, FRAME_DATA, FLAG_END_STREAM, f->stream.id, NULL, 0))
        flow_finish_if_done(f);
}

static void count_sent(struct flow *f, size_t n)
{
    count_bytes(f->shape == SHAPE_HBONE ? &f->slot->to_client : &f->slot->from_client, n);
}

static void read_failed(struct flow *f, struct plain *p, int error)
{
    if (error == EAGAIN || error == EINTR) {
        p->readable = false;
        tunnel_release_empty(f->stream.tunnel);
    } else {
        plain_error(p, error);
    }
}

/* False when nothing can be sent now; the flow is then queued where it will be found. */
static bool may_send(struct flow *f, struct plain *p)
{
    struct tunnel *t = f->stream.tunnel;
    bool by_stream = f->stream.send_window <= 0;
    f->starved = by_stream || t->send_window <= 0 || t->blocked;
    if (!f->starved)
        return true;
    if (p->failed) {
        plain_error(p, ECONNRESET);
        return false;
    }
    flow_watch_progress(f);
    if (!by_stream) /* WINDOW_UPDATE for the stream finds the flow by itself */
        starve(f);
    return false;
}

void stream_pump(struct flow *f)
{
    struct plain *p = flow_plain(f);
    struct tunnel *t = f->stream.tunnel;
    struct iovec pieces[GATHER_PIECES];
    int n;
    if (!t || !p->readable || p->got_end || stream_sent_end(&f->stream) || !may_send(f, p))
        return;
    if (!tunnel_room(t, RECORD_PLAIN)) { /* blocked by now, dead, or without memory */
        if (flow_alive(f) && may_send(f, p))
            flow_out_of_memory(f);
        return;
    }
    int64_t limit = f->stream.send_window < t->send_window ? f->stream.send_window : t->send_window;
    if (limit > PLAIN_ROOM)
        limit = PLAIN_ROOM;
    uint32_t asked =
        plan_frames(t, t->plain + t->plain_size, PLAIN_ROOM - t->plain_size, (uint32_t)limit, pieces, &n);
    ssize_t got = n == 1 ? recv(p->source.fd, pieces->iov_base, asked, 0) : readv(p->source.fd, pieces, n);
    if (got < 0) {
        read_failed(f, p, errno);
        return;
    }
    if (got == 0) {
        p->got_end = true;
        p->readable = false;
        end_stream(f);
        return;
    }
    f->stream.send_window -= got;
    t->send_window -= got;
    frame_up(t, f->stream.id, pieces, (size_t)got);
    count_sent(f, (size_t)got);
    if ((uint32_t)got < asked && !p->hung_up)
        p->readable = false;
    else
        flow_ready(f);
}

void stream_window_changed(struct flow *f, int64_t delta)
{
    f->stream.send_window += delta;
    if (f->stream.send_window > 0 && f->state == FLOW_RELAYING)
        flow_ready(f);
}

/* ---- stream -> plain socket */

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
    if (stream_got_end(s) || !s->tunnel || s->uncredited < s->recv_target / 2)
        return;
    uint32_t credit = s->uncredited;
    uint32_t most = (uint32_t)f->worker->engine->config.stream_window_max;
    if (keeps_up && s->recv_target < most) {
        uint32_t grown = s->recv_target <= most / 2 ? 2 * s->recv_target : most;
        credit += grown - s->recv_target;
        s->recv_target = grown;
    }
    s->uncredited = 0;
    s->recv_window += credit;
    give_window(f, credit);
}

void stream_delivered(struct flow *f, struct plain *p, size_t n, bool queued)
{
    if (f->shape == SHAPE_PLAIN || p != flow_plain(f))
        return;
    count_bytes(f->shape == SHAPE_HBONE ? &f->slot->from_client : &f->slot->to_client, n);
    if (queued && f->stream.tunnel)
        f->stream.tunnel->buffered -= n;
    stream_credit(f, n, !queued && !p->out.size);
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
        tunnel_relieve(t);
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
