#include "plain_write.h"

#include <errno.h>
#include <sys/socket.h>

#include "flow.h"
#include "flow_end.h"
#include "flow_progress.h"
#include "socket.h"
#include "stream_window.h"
#include "wire.h"

enum { DRAIN_PIECES = 64 };

/* Whose reset it was: the local application's, or the far end's. */
static enum reason reset_reason(const struct plain *p)
{
    const struct flow *f = p->flow;
    bool client = p == &f->client;
    bool local = f->kind == LISTENER_OUTBOUND ? client : !client;
    return local ? REASON_reset_by_app : REASON_peer_reset;
}

void plain_error(struct plain *p, int error)
{
    struct flow *f = p->flow;
    if (!p->connected)
        flow_abort(f, connect_reason(error), error, H2_CANCEL);
    else
        flow_abort(f, reset_reason(p), error, H2_CANCEL);
}

static void shut_down(struct plain *p)
{
    p->end_queued = false;
    p->sent_end = true;
    shutdown(p->source.fd, SHUT_WR);
    flow_finish_if_done(p->flow);
}

void plain_end(struct plain *p)
{
    if (p->sent_end || p->end_queued)
        return;
    if (p->out.size || !p->connected) {
        p->end_queued = true;
        flow_watch_progress(p->flow);
    } else {
        shut_down(p);
    }
}

/* The bytes taken (0: blocked), or -1 when the flow ended over it. One piece, the usual case, needs no sendmsg: its
 * header and vector would have to be copied into the kernel first. */
static ssize_t send_pieces(struct plain *p, struct iovec *pieces, int n)
{
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = (size_t)n};
    ssize_t sent = n == 1 ? send(p->source.fd, pieces->iov_base, pieces->iov_len, MSG_NOSIGNAL)
                          : sendmsg(p->source.fd, &message, MSG_NOSIGNAL);
    if (sent >= 0)
        return sent;
    if (errno == EAGAIN || errno == EINTR || errno == ENOBUFS) {
        p->blocked = true;
        return 0;
    }
    plain_error(p, errno);
    return -1;
}

bool plain_drain(struct plain *p)
{
    struct flow *f = p->flow;
    struct iovec pieces[DRAIN_PIECES];
    if (!p->connected)
        return true;
    while (p->out.size && !p->blocked) {
        int n = queue_peek(&p->out, pieces, DRAIN_PIECES);
        ssize_t sent = send_pieces(p, pieces, n);
        if (sent < 0)
            return false;
        queue_drop(&p->out, &f->worker->buffers, (size_t)sent);
        stream_delivered(f, p, (size_t)sent, true);
    }
    if (!p->out.size && p->end_queued)
        shut_down(p);
    return flow_alive(f);
}

static bool queue_rest(struct plain *p, const struct iovec *pieces, int n, size_t taken)
{
    for (int i = 0; i < n; i++) {
        if (taken >= pieces[i].iov_len) {
            taken -= pieces[i].iov_len;
            continue;
        }
        if (!queue_append(&p->out, &p->flow->worker->buffers, (uint8_t *)pieces[i].iov_base + taken,
                          pieces[i].iov_len - taken))
            return false;
        taken = 0;
    }
    return true;
}

/* What is queued for a stream's socket counts on its tunnel. */
static void note_queued(struct plain *p, size_t n)
{
    struct flow *f = p->flow;
    if (f->stream.tunnel && p == flow_plain(f))
        f->stream.tunnel->buffered += n;
}

ssize_t plain_write(struct plain *p, struct iovec *pieces, int n)
{
    size_t total = 0, before = p->out.size;
    ssize_t sent = 0;
    for (int i = 0; i < n; i++)
        total += pieces[i].iov_len;
    if (p->connected && !p->blocked && !p->out.size)
        sent = send_pieces(p, pieces, n);
    if (sent < 0)
        return -1;
    if ((size_t)sent < total) {
        p->blocked = p->connected; /* a connecting socket is drained when it connects */
        bool queued = queue_rest(p, pieces, n, (size_t)sent);
        note_queued(p, p->out.size - before);
        if (!queued) {
            flow_out_of_memory(p->flow);
            return -1;
        }
        flow_watch_progress(p->flow);
    }
    return sent;
}
