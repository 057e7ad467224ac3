/* Integrity: each connection sends its own pattern, the server echoes it, every byte is compared, then half-close. */
#define _GNU_SOURCE
#include "common.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PIECE = 60000, PATIENCE_MS = 10000 }; /* no multiple of a record or frame size */

struct stream {
    int fd;
    uint64_t sent, got, key;
};

static unsigned char pattern(uint64_t position, uint64_t key) {
    return (unsigned char)(((position >> 3) * 0x9E3779B97F4A7C15u + key) >> ((position & 7) * 8));
}

static void push(struct stream *s, uint64_t length) {
    static unsigned char out[PIECE];
    uint64_t room = length - s->sent < PIECE ? length - s->sent : PIECE;
    for (uint64_t i = 0; i < room; i++)
        out[i] = pattern(s->sent + i, s->key);
    ssize_t n = send(s->fd, out, room, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN)
        fail("check: send: %s", strerror(errno));
    s->sent += n > 0 ? (uint64_t)n : 0;
    if (s->sent == length)
        shutdown(s->fd, SHUT_WR);
}

/* True when the peer has finished and everything came back. */
static bool pull(struct stream *s, uint64_t length) {
    ssize_t n = recv(s->fd, scratch, CHUNK, 0);
    if (n < 0 && errno != EAGAIN)
        fail("check: recv: %s", strerror(errno));
    for (ssize_t i = 0; i < n; i++)
        if ((unsigned char)scratch[i] != pattern(s->got + (uint64_t)i, s->key))
            fail("check: wrong byte at %lu", s->got + (uint64_t)i);
    s->got += n > 0 ? (uint64_t)n : 0;
    if (n == 0 && s->got != length)
        fail("check: the connection ended after %lu of %lu bytes", s->got, length);
    return n == 0;
}

int run_check(const struct options *o) {
    int epoll = epoll_create1(EPOLL_CLOEXEC), left = o->conns;
    uint64_t length = o->mebibytes << 20;
    struct stream *streams = calloc((size_t)o->conns, sizeof *streams);
    struct epoll_event events[64];
    unsigned char head[PREFACE];
    preface(head, 'E', 0);
    for (int i = 0; i < o->conns; i++) {
        streams[i] = (struct stream){.fd = dial(o, false), .key = (uint64_t)i * 77777};
        send_all(streams[i].fd, head, sizeof head);
        set_nonblocking(streams[i].fd);
        watch(epoll, streams[i].fd, EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT, &streams[i]);
    }
    while (left) {
        int n = epoll_wait(epoll, events, 64, PATIENCE_MS);
        if (n == 0)
            fail("check: nothing moved for %d ms with %d connections open", PATIENCE_MS, left);
        for (int i = 0; i < n; i++) {
            struct stream *s = events[i].data.ptr;
            if (events[i].events & EPOLLOUT && s->sent < length) {
                push(s, length);
                if (s->sent == length)
                    watch(epoll, s->fd, EPOLL_CTL_MOD, EPOLLIN, s);
            }
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR) && pull(s, length)) {
                close(s->fd);
                left--;
            }
        }
    }
    printf("{\"bytes\": %lu}\n", length * (uint64_t)o->conns);
    return 0;
}
