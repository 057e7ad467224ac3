#include "plain_event.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "flow.h"
#include "flow_established.h"
#include "flow_progress.h"
#include "plain_write.h"
#include "socket.h"

/* ---- events */

static bool finish_connect(struct plain *p, uint32_t events)
{
    if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
        return false;
    int error = socket_error(p->source.fd);
    if (error || (events & (EPOLLERR | EPOLLHUP))) {
        plain_error(p, error ? error : ECONNRESET);
        return false;
    }
    flow_onward_connected(p->flow, NULL);
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
        if (!plain_drain(p))
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
    stat_add(counter, (size_t)n);
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
