/* Messages and connections: request-response (closed loop), connections per second, idle connections. */
#define _GNU_SOURCE
#include "common.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct client {
    int fd;
    uint32_t got;
    bool asked;
    uint64_t started;
};

static struct histogram latency;

static void first_round_trip(int fd, uint32_t size) {
    unsigned char head[PREFACE];
    preface(head, 'R', size);
    send_all(fd, head, sizeof head);
    send_all(fd, zeros, size);
    receive_all(fd, scratch, size);
}

static void ask(struct client *c, uint32_t size) {
    c->started = now_ns();
    if (send(c->fd, zeros, size, MSG_NOSIGNAL) != (ssize_t)size)
        fail("rr: send: %s", strerror(errno));
}

/* Reads what is there; true when an answer is complete (then asks again). */
static bool exchange(struct client *c, uint32_t size) {
    ssize_t n = recv(c->fd, scratch, CHUNK, 0);
    if (n <= 0) {
        if (n < 0 && errno == EAGAIN)
            return false;
        fail("rr: %s", n ? strerror(errno) : "the connection ended");
    }
    c->got += (uint32_t)n;
    if (c->got < size)
        return false;
    c->got -= size;
    histogram_add(&latency, now_ns() - c->started);
    ask(c, size);
    return true;
}

int run_exchange(const struct options *o) {
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct client *clients = calloc((size_t)o->conns, sizeof *clients);
    struct epoll_event events[256];
    for (int i = 0; i < o->conns; i++) {
        clients[i].fd = dial(o, false);
        first_round_trip(clients[i].fd, o->size);
        set_nonblocking(clients[i].fd);
        watch(epoll, clients[i].fd, EPOLL_CTL_ADD, EPOLLIN, &clients[i]);
    }
    gate_ready(o);
    uint64_t start = now_ns(), end = start + (uint64_t)(o->seconds * 1e9), from = start + (end - start) / 10;
    uint64_t done = 0, warmup = 0, counted_from = start, now;
    for (int i = 0; i < o->conns; i++)
        ask(&clients[i], o->size);
    while ((now = now_ns()) < end) {
        if (counted_from == start && now >= from) {
            counted_from = now;
            warmup = done;
            histogram_clear(&latency);
        }
        int n = epoll_wait(epoll, events, 256, 50);
        for (int i = 0; i < n; i++)
            done += exchange(events[i].data.ptr, o->size);
    }
    double seconds = (double)(now - counted_from) * 1e-9;
    printf("{\"per_s\": %.2f, \"p50_us\": %.2f, \"p99_us\": %.2f, \"count\": %lu, \"seconds\": %.4f, "
           "\"own_cpu_s\": %.4f}\n",
           (double)(done - warmup) / seconds, histogram_us(&latency, 0.5), histogram_us(&latency, 0.99),
           done, seconds, self_cpu());
    gate_close(o);
    return 0;
}

static void begin(struct client *c, const struct options *o, int epoll) {
    c->got = 0;
    c->asked = false;
    c->started = now_ns();
    c->fd = dial(o, true);
    watch(epoll, c->fd, EPOLL_CTL_ADD, EPOLLOUT, c);
}

enum outcome { PENDING, DONE, FAILED };

/* One step of connect, preface + request in one segment, whole answer. */
static enum outcome advance(struct client *c, const struct options *o, int epoll, const char *message) {
    if (!c->asked) {
        size_t length = PREFACE + o->size;
        if (send(c->fd, message, length, MSG_NOSIGNAL) != (ssize_t)length)
            return FAILED;
        c->asked = true;
        watch(epoll, c->fd, EPOLL_CTL_MOD, EPOLLIN, c);
        return PENDING;
    }
    ssize_t n = recv(c->fd, scratch, CHUNK, 0);
    if (n <= 0)
        return n < 0 && errno == EAGAIN ? PENDING : FAILED;
    c->got += (uint32_t)n;
    return c->got < o->size ? PENDING : DONE;
}

static void connections(struct client *clients, const struct options *o, int epoll, const char *message) {
    struct epoll_event events[256];
    double cpu = self_cpu();
    uint64_t start = now_ns(), end = start + (uint64_t)(o->seconds * 1e9), done = 0, failed = 0, now;
    histogram_clear(&latency);
    for (int i = 0; i < o->conns; i++)
        begin(&clients[i], o, epoll);
    while ((now = now_ns()) < end) {
        int n = epoll_wait(epoll, events, 256, 50);
        for (int i = 0; i < n; i++) {
            struct client *c = events[i].data.ptr;
            enum outcome outcome = advance(c, o, epoll, message);
            if (outcome == PENDING)
                continue;
            if (outcome == DONE)
                histogram_add(&latency, now_ns() - c->started);
            done += outcome == DONE;
            failed += outcome == FAILED;
            close(c->fd);
            begin(c, o, epoll);
        }
    }
    double seconds = (double)(now - start) * 1e-9;
    for (int i = 0; i < o->conns; i++)
        close(clients[i].fd);
    printf("{\"per_s\": %.2f, \"p50_us\": %.2f, \"p99_us\": %.2f, \"count\": %lu, \"failed\": %lu, "
           "\"seconds\": %.4f, \"own_cpu_s\": %.4f}\n",
           (double)done / seconds, histogram_us(&latency, 0.5), histogram_us(&latency, 0.99), done, failed, seconds,
           self_cpu() - cpu);
}

int run_connections(const struct options *o) {
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct client *clients = calloc((size_t)o->conns, sizeof *clients);
    char *message = calloc(1, PREFACE + o->size);
    preface((unsigned char *)message, 'R', o->size);
    gate_ready(o);
    do
        connections(clients, o, epoll, message);
    while (gate_again(o));
    return 0;
}

/* Blocking, one after the other, so that the time of connect() is nothing else's. */
static void dials(const struct options *o, const unsigned char *head) {
    double cpu = self_cpu();
    uint64_t start = now_ns(), end = start + (uint64_t)(o->seconds * 1e9), done = 0, now;
    histogram_clear(&latency);
    while ((now = now_ns()) < end) {
        int fd = dial(o, false);
        histogram_add(&latency, now_ns() - now);
        send_all(fd, head, PREFACE);
        send_all(fd, zeros, o->size);
        receive_all(fd, scratch, o->size);
        close(fd);
        done++;
    }
    printf("{\"per_s\": %.2f, \"p50_us\": %.2f, \"p99_us\": %.2f, \"count\": %lu, \"own_cpu_s\": %.4f}\n",
           (double)done / ((double)(now - start) * 1e-9), histogram_us(&latency, 0.5),
           histogram_us(&latency, 0.99), done, self_cpu() - cpu);
}

int run_dials(const struct options *o) {
    unsigned char head[PREFACE];
    preface(head, 'R', o->size);
    gate_ready(o);
    do
        dials(o, head);
    while (gate_again(o));
    return 0;
}

int run_idle(const struct options *o) {
    int *fds = calloc((size_t)o->conns, sizeof *fds);
    char byte;
    for (int i = 0; i < o->conns; i++) {
        fds[i] = dial(o, false);
        first_round_trip(fds[i], o->size);
    }
    printf("{\"open\": %d}\n", o->conns);
    fflush(stdout);
    while (read(STDIN_FILENO, &byte, 1) > 0)
        continue;
    for (int i = 0; i < o->conns; i += 97) { /* a sample still has to work, or "idle" meant "dead" */
        send_all(fds[i], zeros, o->size);
        receive_all(fds[i], scratch, o->size);
    }
    printf("{\"closed\": %d}\n", o->conns);
    return 0;
}
