#include "plain.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "dial.h"
#include "flow.h"
#include "stream.h"
#include "worker.h"

enum { DRAIN_PIECES = 64 };

bool plain_adopt(struct plain *p, int fd)
{
    if (!worker_watch(p->flow->worker, fd, &p->source))
        return false;
    p->source.fd = fd;
    p->connected = true;
    return true;
}

bool plain_connecting(struct plain *p, int fd)
{
    if (!worker_watch(p->flow->worker, fd, &p->source))
        return false;
    p->source.fd = fd;
    return true;
}

void close_with_reset(int fd)
{
    struct linger now = {1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(fd);
}

void plain_close(struct plain *p, bool reset)
{
    struct flow *f = p->flow;
    if (f->stream.tunnel && p == flow_plain(f))
        f->stream.tunnel->buffered -= p->out.size;
    queue_clear(&p->out, &f->worker->buffers);
    if (p->source.fd < 0)
        return;
    if (reset)
        close_with_reset(p->source.fd);
    else
        close(p->source.fd);
    p->source.fd = -1;
}

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

static int socket_error(int fd)
{
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
    return error;
}

/* ---- writing */

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

/* Writes what is queued. False when the flow ended over it. */
static bool drain(struct plain *p)
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

/* ---- events */

void plain_connected(struct plain *p, const struct header_list *headers)
{
    struct flow *f = p->flow;
    p->connected = true;
    if (f->shape == SHAPE_HBONE)
        stream_answer_ok(f);
    if (flow_alive(f))
        flow_established(f, headers);
    if (flow_alive(f))
        drain(p);
}

static bool finish_connect(struct plain *p, uint32_t events)
{
    if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
        return false;
    int error = socket_error(p->source.fd);
    if (error || (events & (EPOLLERR | EPOLLHUP))) {
        plain_error(p, error ? error : ECONNRESET);
        return false;
    }
    plain_connected(p, NULL);
    return flow_alive(p->flow);
}

void plain_on_event(struct plain *p, uint32_t events)
{
    struct flow *f = p->flow;
    if (!flow_alive(f) || p->source.fd < 0 || f->doomed)
        return;
    if (!p->connected && f->twin) { /* stands when the far tunnel's answer is here; until then nothing comes */
        p->failed = p->failed || (events & EPOLLERR);
        return;
    }
    if (!p->connected && !finish_connect(p, events))
        return;
    if (events & EPOLLERR) {
        p->failed = true;
        if (f->state != FLOW_RELAYING || p->got_end) {
            plain_error(p, socket_error(p->source.fd));
            return;
        }
    }
    if ((events & EPOLLOUT) && p->blocked) {
        p->blocked = false;
        if (!drain(p))
            return;
    }
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        p->hung_up = true;
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        p->readable = true;
    flow_ready(f);
}

/* ---- plain to plain */

static void relay(struct plain *from, struct plain *to, _Atomic uint64_t *counter)
{
    struct flow *f = from->flow;
    struct worker *w = f->worker;
    if (!from->readable || from->got_end || to->out.size) {
        if (from->failed && to->out.size)
            plain_error(from, socket_error(from->source.fd));
        return;
    }
    ssize_t n = recv(from->source.fd, w->read_buffer, PLAIN_ROOM, 0);
    if (n < 0) {
        if (errno == EAGAIN || errno == EINTR)
            from->readable = false;
        else
            plain_error(from, errno);
        return;
    }
    if (n == 0) {
        from->got_end = true;
        from->readable = false;
        plain_end(to);
        flow_watch_progress(f);
        return;
    }
    count_bytes(counter, (size_t)n);
    if (n < PLAIN_ROOM && !from->hung_up)
        from->readable = false;
    struct iovec piece = {w->read_buffer, (size_t)n};
    if (plain_write(to, &piece, 1) >= 0 && from->readable)
        flow_ready(f);
}

void plain_relay(struct flow *f)
{
    relay(&f->client, &f->onward, &f->slot->from_client);
    if (flow_alive(f))
        relay(&f->onward, &f->client, &f->slot->to_client);
}
