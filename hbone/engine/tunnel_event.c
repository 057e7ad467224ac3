#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "tunnel_event.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "socket.h"
#include "stream_receive.h"
#include "transition.h"
#include "tunnel.h"
#include "tunnel_read.h"

enum { TURNS = 2 }; /* reads before other sockets get theirs */

/* ---- connecting */

static void begin_handshake(struct tunnel *t)
{
    struct worker *w = t->worker;
    const uint8_t *out;
    if (!tunnel_move(t, TUNNEL_HANDSHAKE))
        return;
    t->phase_deadline = w->now + w->engine->config.handshake_timeout;
    address_of_socket(&t->local, NULL, t->source.fd);
    tunnel_rearm(t);
    const struct route *key = t->entry->key;
    struct session_place place = {key->destination, key->netns};
    t->handshake = handshake_new(t->identity, true, key->bytes, key->n_sans, &place);
    if (!t->handshake) {
        tunnel_out_of_memory(t);
        return;
    }
    if (handshake_step(t->handshake, NULL, 0) == HANDSHAKE_FAILED) {
        tunnel_fail(t, t->handshake->reason, SILENTLY, t->handshake->detail);
        return;
    }
    size_t size = handshake_output(t->handshake, &out);
    tunnel_send_raw(t, out, size);
}

static bool finish_connect(struct tunnel *t, uint32_t events)
{
    int error = 0;
    socklen_t size = sizeof error;
    if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
        return false;
    getsockopt(t->source.fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error || (events & (EPOLLERR | EPOLLHUP))) {
        tunnel_socket_failed(t, error ? error : ECONNRESET);
        return false;
    }
    begin_handshake(t);
    return tunnel_alive(t);
}

/* ---- reading */

/* Starts the read buffer with what the last read left over. */
static size_t resume_partial(struct tunnel *t)
{
    struct chunk *c = t->partial;
    if (!c)
        return 0;
    size_t n = c->end;
    memcpy(t->worker->read_buffer, c->bytes, n);
    return n;
}

static void keep_partial(struct tunnel *t, const uint8_t *bytes, size_t size)
{
    struct buffers *b = &t->worker->buffers;
    if (!size) {
        chunk_put(b, t->partial);
        t->partial = NULL;
        return;
    }
    if (!t->partial && !(t->partial = chunk_get(b))) {
        tunnel_out_of_memory(t);
        return;
    }
    memcpy(t->partial->bytes, bytes, size);
    t->partial->end = (uint32_t)size;
}

static void on_eof(struct tunnel *t)
{
    enum reason reason = t->state == TUNNEL_OPEN ? REASON_truncated : REASON_tls_handshake_failed;
    t->peer_eof = true;
    tunnel_fail(t, reason, SILENTLY,
                t->state == TUNNEL_OPEN ? "the peer vanished without close_notify"
                                        : "the peer closed the connection during the handshake");
}

/* One read and everything in it. False when there is no more to do now. */
static bool read_once(struct tunnel *t)
{
    struct worker *w = t->worker;
    size_t have = resume_partial(t);
    size_t asked = READ_SIZE - have;
    ssize_t n = recv(t->source.fd, w->read_buffer + have, asked, 0);
    if (n < 0) {
        if (errno != EAGAIN && errno != EINTR)
            tunnel_socket_failed(t, errno);
        return false;
    }
    if (n == 0) {
        on_eof(t);
        return false;
    }
    t->heard = w->now;
    size_t size = have + (size_t)n;
    size_t used = tunnel_records(t, w->read_buffer, size);
    stream_deliver_all(w);
    if (!tunnel_alive(t))
        return false;
    keep_partial(t, w->read_buffer + used, size - used);
    return tunnel_alive(t) && ((size_t)n == asked || t->hung_up);
}

/* A closing tunnel reads only to learn of the peer's FIN. */
static void read_and_forget(struct tunnel *t)
{
    ssize_t n;
    int turns = 0;
    do
        n = recv(t->source.fd, t->worker->read_buffer, READ_SIZE, 0);
    while (n > 0 && ++turns < TURNS);
    t->peer_eof = t->peer_eof || n == 0;
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        tunnel_fail(t, REASON_ok, SILENTLY, NULL);
    else if (n > 0)
        tunnel_read_again(t);
}

void tunnel_read(struct tunnel *t)
{
    if (t->state == TUNNEL_CLOSING) {
        read_and_forget(t);
        return;
    }
    for (int turn = 0; turn < TURNS; turn++)
        if (!read_once(t))
            return;
    tunnel_read_again(t);
}

void tunnel_on_event(struct tunnel *t, uint32_t events)
{
    if (t->state == TUNNEL_DEAD || (t->state == TUNNEL_CONNECTING && !finish_connect(t, events)))
        return;
    if (events & EPOLLOUT)
        tunnel_writable(t);
    if (t->state == TUNNEL_CLOSING && (events & EPOLLOUT) && (t->in_order || !t->blocked) && !t->fin_sent)
        tunnel_linger(t);
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        t->hung_up = true;
    if (t->state != TUNNEL_DEAD && (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)))
        tunnel_read(t);
}
