#include "stream_send.h"

#include <errno.h>
#include <sys/socket.h>

#include "flow.h"
#include "flow_end.h"
#include "flow_progress.h"
#include "plain_write.h"
#include "stream.h"
#include "tunnel.h"

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
    stat_add(f->shape == SHAPE_HBONE ? &f->slot->to_client : &f->slot->from_client, n);
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
