/* The server: one thread, level-triggered epoll, bounded work per event so that no connection starves another. */
#define _GNU_SOURCE
#include "common.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <unistd.h>

enum { ROUNDS_PER_EVENT = 8, ACCEPTS_PER_EVENT = 64 };

struct peer {
    int fd;
    unsigned char preface[PREFACE];
    unsigned preface_len;
    char mode;
    uint32_t size;
    uint64_t received;                 /* after the preface */
    uint64_t owed;                     /* 'R': answer bytes not yet sent */
    uint32_t partial;                  /* 'R': bytes of a request that is not complete */
    char *echo;                        /* 'E': one chunk, echo_from..echo_to is unsent */
    size_t echo_from, echo_to;
    bool at_end;                       /* 'E': the client has finished */
    uint32_t interest;
};

static int epoll_fd, source_fd;

static void drop(struct peer *p) {
    close(p->fd);
    free(p->echo);
    free(p);
}

static void want(struct peer *p, uint32_t events) {
    if (p->interest != events)
        watch(epoll_fd, p->fd, EPOLL_CTL_MOD, p->interest = events, p);
}

/* Each step returns false when the connection is finished. */
static bool again(void) { return errno == EAGAIN || errno == EINTR; }

static bool source(struct peer *p) {
    for (int i = 0; i < ROUNDS_PER_EVENT; i++) {
        off_t offset = 0;
        if (sendfile(p->fd, source_fd, &offset, CHUNK) < 0)
            return again();
    }
    return true;
}

/* 'S' discards without a copy, 'C' reads as applications do. */
static bool sink(struct peer *p) {
    size_t size = p->mode == 'S' ? sizeof scratch : CHUNK;
    for (int i = 0; i < ROUNDS_PER_EVENT; i++) {
        ssize_t n = recv(p->fd, scratch, size, p->mode == 'S' ? MSG_TRUNC : 0);
        if (n < 0)
            return again();
        if (n == 0) { /* the client compares this with what it sent */
            uint64_t wire = htobe64(p->received);
            send(p->fd, &wire, sizeof wire, MSG_NOSIGNAL);
            return false;
        }
        p->received += (uint64_t)n;
    }
    return true;
}

static bool answer(struct peer *p) {
    while (p->owed) {
        ssize_t n = send(p->fd, zeros, p->owed < CHUNK ? p->owed : CHUNK, MSG_NOSIGNAL);
        if (n < 0) {
            want(p, EPOLLOUT);
            return again();
        }
        p->owed -= (uint64_t)n;
    }
    want(p, EPOLLIN);
    return true;
}

static bool respond(struct peer *p) {
    if (p->owed)
        return answer(p);
    ssize_t n = recv(p->fd, scratch, CHUNK, 0);
    if (n <= 0)
        return n < 0 && again();
    uint64_t have = (uint64_t)p->partial + (uint64_t)n;
    p->owed = have / p->size * p->size;
    p->partial = (uint32_t)(have % p->size);
    return answer(p);
}

static bool echo(struct peer *p) {
    if (!p->echo && !(p->echo = malloc(CHUNK)))
        fail("no memory");
    for (int i = 0; i < ROUNDS_PER_EVENT; i++) {
        if (p->echo_from == p->echo_to) {
            ssize_t n = recv(p->fd, p->echo, CHUNK, 0);
            if (n < 0)
                return again();
            if (n == 0)
                return false; /* everything was echoed: an ordinary FIN follows */
            p->echo_from = 0;
            p->echo_to = (size_t)n;
        }
        ssize_t n = send(p->fd, p->echo + p->echo_from, p->echo_to - p->echo_from, MSG_NOSIGNAL);
        if (n < 0) {
            want(p, EPOLLOUT);
            return again();
        }
        p->echo_from += (size_t)n;
        want(p, p->echo_from == p->echo_to ? EPOLLIN : EPOLLOUT);
    }
    return true;
}

static bool learn_mode(struct peer *p) {
    ssize_t n = recv(p->fd, p->preface + p->preface_len, PREFACE - p->preface_len, 0);
    if (n <= 0)
        return n < 0 && again();
    p->preface_len += (unsigned)n;
    if (p->preface_len < PREFACE)
        return true;
    uint32_t wire;
    memcpy(&wire, p->preface + 4, sizeof wire);
    p->mode = (char)p->preface[0];
    p->size = ntohl(wire);
    if (p->mode == 'D')
        want(p, EPOLLOUT);
    return p->mode && strchr("SCDRE", p->mode) && (p->mode != 'R' || p->size);
}

static bool step(struct peer *p) {
    if (p->preface_len < PREFACE) {
        if (!learn_mode(p))
            return false;
        if (p->preface_len < PREFACE)
            return true;
    }
    switch (p->mode) {
    case 'D': return source(p);
    case 'S':
    case 'C': return sink(p);
    case 'R': return respond(p);
    default: return echo(p);
    }
}

static void accept_peers(int listener) {
    for (int i = 0; i < ACCEPTS_PER_EVENT; i++) {
        int one = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct peer *p = calloc(1, sizeof *p);
        if (!p)
            fail("no memory");
        p->fd = fd;
        watch(epoll_fd, fd, EPOLL_CTL_ADD, p->interest = EPOLLIN, p);
    }
}

static int open_listener(const struct options *o) {
    int one = 1, listener = socket(o->address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (const struct sockaddr *)&o->address, o->address_len) || listen(listener, 4096))
        fail("listen: %s", strerror(errno));
    return listener;
}

int serve(const struct options *o) {
    int listener = o->listener >= 0 ? o->listener : open_listener(o);
    struct epoll_event events[256];
    source_fd = zero_file();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    watch(epoll_fd, listener, EPOLL_CTL_ADD, EPOLLIN, NULL);
    for (;;) {
        int n = epoll_wait(epoll_fd, events, 256, -1);
        for (int i = 0; i < n; i++) {
            struct peer *p = events[i].data.ptr;
            if (!p)
                accept_peers(listener);
            else if ((events[i].events & EPOLLERR) || !step(p))
                drop(p);
        }
    }
}
