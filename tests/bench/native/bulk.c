/* Throughput. Up: what counts is what the sink says arrived, timed until its last answer. Down: what was read
 * after the first fifth of the time. The ends use sendfile and MSG_TRUNC, so that the relay dominates the cost. */
#define _GNU_SOURCE
#include "common.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <unistd.h>

enum { CALLS_PER_EVENT = 8 };

struct flow {
    int fd;
    uint64_t bytes;
};

static uint64_t move(struct flow *f, const struct options *o, int zero_fd) {
    uint64_t moved = 0;
    for (int i = 0; i < CALLS_PER_EVENT; i++) {
        off_t offset = 0;
        ssize_t n = o->down    ? recv(f->fd, scratch, sizeof scratch, MSG_TRUNC)
                    : o->writes ? send(f->fd, zeros, o->writes, MSG_NOSIGNAL)
                                : sendfile(f->fd, zero_fd, &offset, CHUNK);
        if (n < 0 && errno == EAGAIN)
            break;
        if (n <= 0)
            fail("bulk: %s after %lu bytes", n ? strerror(errno) : "the connection ended", f->bytes);
        moved += (uint64_t)n;
        f->bytes += (uint64_t)n;
    }
    return moved;
}

static void verify_arrival(struct flow *flows, int count) {
    for (int i = 0; i < count; i++) {
        fcntl(flows[i].fd, F_SETFL, 0);
        shutdown(flows[i].fd, SHUT_WR);
    }
    for (int i = 0; i < count; i++) {
        uint64_t wire;
        receive_all(flows[i].fd, &wire, sizeof wire);
        if (be64toh(wire) != flows[i].bytes)
            fail("bulk: connection %d sent %lu bytes, %lu arrived", i, flows[i].bytes, be64toh(wire));
    }
}

int run_bulk(const struct options *o) {
    int epoll = epoll_create1(EPOLL_CLOEXEC), zero_fd = zero_file();
    struct flow *flows = calloc((size_t)o->conns, sizeof *flows);
    struct epoll_event events[256];
    unsigned char head[PREFACE];
    preface(head, o->down ? 'D' : o->writes ? 'C' : 'S', 0);
    for (int i = 0; i < o->conns; i++)
        flows[i].fd = dial(o, false);
    gate_ready(o);
    for (int i = 0; i < o->conns; i++) {
        send_all(flows[i].fd, head, sizeof head);
        set_nonblocking(flows[i].fd);
        watch(epoll, flows[i].fd, EPOLL_CTL_ADD, o->down ? EPOLLIN : EPOLLOUT, &flows[i]);
    }
    uint64_t start = now_ns(), end = start + (uint64_t)(o->seconds * 1e9);
    uint64_t from = o->down ? start + (end - start) / 5 : start, total = 0, skipped = 0, counted_from = start;
    bool warm = !o->down;
    uint64_t now;
    while ((now = now_ns()) < end) {
        if (!warm && now >= from) {
            warm = true;
            skipped = total;
            counted_from = now;
        }
        int n = epoll_wait(epoll, events, 256, 50);
        for (int i = 0; i < n; i++)
            total += move(events[i].data.ptr, o, zero_fd);
    }
    if (!o->down) {
        verify_arrival(flows, o->conns);
        now = now_ns();
    }
    uint64_t least = UINT64_MAX, most = 0;
    for (int i = 0; i < o->conns; i++) {
        least = flows[i].bytes < least ? flows[i].bytes : least;
        most = flows[i].bytes > most ? flows[i].bytes : most;
    }
    double seconds = (double)(now - counted_from) * 1e-9;
    printf("{\"gbit_s\": %.4f, \"bytes\": %lu, \"seconds\": %.4f, \"fairness\": %.3f, \"own_cpu_s\": %.4f}\n",
           (double)(total - skipped) * 8 / seconds / 1e9, total, seconds, most ? (double)least / (double)most : 0,
           self_cpu());
    gate_close(o);
    return 0;
}
