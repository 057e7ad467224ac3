#define _GNU_SOURCE
#include "common.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

char scratch[BIG_READ];
const char zeros[CHUNK];

uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

double self_cpu(void) {
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) + (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) * 1e-6;
}

void fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(1);
}

static unsigned slot(uint64_t ns) {
    if (ns < HISTOGRAM_STEPS)
        return (unsigned)ns;
    unsigned power = 63u - (unsigned)__builtin_clzll(ns);         /* >= 6 */
    unsigned step = (unsigned)(ns >> (power - 6)) & (HISTOGRAM_STEPS - 1);
    unsigned s = (power - 5) * HISTOGRAM_STEPS + step;
    return s < HISTOGRAM_SLOTS ? s : HISTOGRAM_SLOTS - 1;
}

void histogram_add(struct histogram *h, uint64_t ns) {
    h->count[slot(ns)]++;
    h->total++;
}

void histogram_clear(struct histogram *h) { memset(h, 0, sizeof *h); }

/* Upper edge of the slot that holds the quantile: never flatters. */
double histogram_us(const struct histogram *h, double quantile) {
    uint64_t seen = 0;
    for (unsigned s = 0; s < HISTOGRAM_SLOTS; s++) {
        seen += h->count[s];
        if (h->total && (double)seen >= quantile * (double)h->total) {
            if (s < HISTOGRAM_STEPS)
                return (s + 1) * 1e-3;
            unsigned power = s / HISTOGRAM_STEPS + 5, step = s % HISTOGRAM_STEPS;
            return (double)((uint64_t)(HISTOGRAM_STEPS + step + 1) << (power - 6)) * 1e-3;
        }
    }
    return 0;
}

/* Whoever measures takes the time of set-up and of closing out of the figure: it reads clocks between these two. */
void gate_ready(const struct options *o) {
    char line[64];
    if (!o->gated)
        return;
    printf("{\"ready\": %d}\n", o->conns);
    fflush(stdout);
    if (read(STDIN_FILENO, line, sizeof line) <= 0)
        fail("nobody opened the gate");
}

void gate_close(const struct options *o) {
    char line[64];
    fflush(stdout);
    while (o->gated && read(STDIN_FILENO, line, sizeof line) > 0)
        continue;
}

/* Another figure is wanted, of the same process: only where nothing is left open between two of them. */
bool gate_again(const struct options *o) {
    char line[64];
    fflush(stdout);
    return o->gated && read(STDIN_FILENO, line, sizeof line) > 0;
}

int dial(const struct options *o, bool nonblocking) {
    int one = 1;
    int fd = socket(o->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | (nonblocking ? SOCK_NONBLOCK : 0), 0);
    if (fd < 0)
        fail("socket: %s", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(fd, (const struct sockaddr *)&o->address, o->address_len) && errno != EINPROGRESS)
        fail("connect: %s", strerror(errno));
    return fd;
}

void set_nonblocking(int fd) { fcntl(fd, F_SETFL, O_NONBLOCK); }

void send_all(int fd, const void *data, size_t length) {
    for (const char *p = data; length;) {
        ssize_t n = send(fd, p, length, MSG_NOSIGNAL);
        if (n <= 0)
            fail("send: %s", strerror(errno));
        p += n;
        length -= (size_t)n;
    }
}

/* A blocking socket may say EAGAIN, and MSG_WAITALL get less, where sk_msg accelerates: docs/direct-path.md. */
void receive_all(int fd, void *data, size_t length) {
    for (size_t got = 0; got < length;) {
        ssize_t n = recv(fd, (char *)data + got, length - got, MSG_WAITALL);
        if (n < 0 && errno != EAGAIN)
            fail("recv: %s", strerror(errno));
        if (n == 0)
            fail("recv: the connection ended after %zu of %zu bytes", got, length);
        got += n > 0 ? (size_t)n : 0;
    }
}

void preface(unsigned char out[PREFACE], char mode, uint32_t size) {
    uint32_t wire = htonl(size);
    memset(out, 0, PREFACE);
    out[0] = (unsigned char)mode;
    memcpy(out + 4, &wire, sizeof wire);
}

void watch(int epoll, int fd, int op, uint32_t events, void *what) {
    struct epoll_event event = {.events = events, .data.ptr = what};
    if (epoll_ctl(epoll, op, fd, &event))
        fail("epoll_ctl: %s", strerror(errno));
}

/* A file of zeros in memory: sendfile() from it costs no copy out of user space. */
int zero_file(void) {
    int fd = memfd_create("zeros", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, CHUNK) || write(fd, zeros, CHUNK) != CHUNK)
        fail("memfd: %s", strerror(errno));
    return fd;
}
