/* relay LISTEN TARGET: a plain TCP relay with splice(), one thread, edge-triggered epoll. What a hop costs at least:
 * no TLS, no HTTP/2, no decision, and the bytes stay in the kernel. LISTEN and TARGET are IPv4 ADDR:PORT. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PIPE_SIZE = 1 << 20, EVENTS = 256 };

struct direction {
    int from, to, pipe[2];
    size_t held;
    bool ended, done;
};
struct link;
struct side {
    struct link *link;
    bool upstream;
};
struct link {
    struct direction direction[2];
    struct side side[2];
    bool connected, dead;
    struct link *next_dead;
};

static int epoll_fd;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static bool opened(struct direction *d) {
    if (d->pipe[0] >= 0)
        return true;
    if (pipe2(d->pipe, O_NONBLOCK | O_CLOEXEC))
        return false;
    fcntl(d->pipe[0], F_SETPIPE_SZ, PIPE_SIZE);
    return true;
}

/* Moves what can be moved; false on an error. */
static bool move(struct direction *d) {
    while (!d->done) {
        if (!opened(d))
            return false;
        while (d->held) {
            ssize_t n = splice(d->pipe[0], NULL, d->to, NULL, d->held, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
            if (n < 0)
                return errno == EAGAIN;
            d->held -= (size_t)n;
        }
        if (d->ended) {
            shutdown(d->to, SHUT_WR);
            d->done = true;
            return true;
        }
        ssize_t n = splice(d->from, NULL, d->pipe[1], NULL, PIPE_SIZE, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
        if (n < 0)
            return errno == EAGAIN;
        d->ended = n == 0;
        d->held = (size_t)n;
    }
    return true;
}

static struct sockaddr_in address(const char *text) {
    struct sockaddr_in a = {.sin_family = AF_INET};
    char host[32] = {0};
    const char *colon = strchr(text, ':');
    if (colon && (size_t)(colon - text) < sizeof host)
        memcpy(host, text, (size_t)(colon - text));
    if (!colon || inet_pton(AF_INET, host, &a.sin_addr) != 1) {
        fprintf(stderr, "not ADDR:PORT: %s\n", text);
        exit(1);
    }
    a.sin_port = htons((uint16_t)atoi(colon + 1));
    return a;
}

static void add(int fd, struct side *s) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = s};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event))
        die("epoll_ctl");
}

static void accept_link(int listener, const struct sockaddr_in *target) {
    int one = 1, near;
    while ((near = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        int far = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        setsockopt(near, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(far, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (connect(far, (const struct sockaddr *)target, sizeof *target) && errno != EINPROGRESS)
            die("connect");
        struct link *l = calloc(1, sizeof *l);
        if (!l)
            die("calloc");
        l->direction[0] = (struct direction){.from = near, .to = far, .pipe = {-1, -1}};
        l->direction[1] = (struct direction){.from = far, .to = near, .pipe = {-1, -1}};
        l->side[0] = (struct side){l, false};
        l->side[1] = (struct side){l, true};
        add(near, &l->side[0]);
        add(far, &l->side[1]);
    }
    if (errno != EAGAIN)
        die("accept");
}

static void close_link(struct link *l) {
    close(l->direction[0].from);
    close(l->direction[0].to);
    for (int i = 0; i < 2; i++)
        if (l->direction[i].pipe[0] >= 0) {
            close(l->direction[i].pipe[0]);
            close(l->direction[i].pipe[1]);
        }
    l->dead = true;
}

/* True when the link is finished: both directions done, or an error. */
static bool serve_side(struct side *s, uint32_t events) {
    struct link *l = s->link;
    if (!l->connected && s->upstream && events & EPOLLOUT)
        l->connected = true;
    if (!l->connected)
        return events & EPOLLERR;
    bool ok = move(&l->direction[0]) && move(&l->direction[1]);
    return !ok || events & EPOLLERR || (l->direction[0].done && l->direction[1].done);
}

int main(int argc, char **argv) {
    struct epoll_event events[EVENTS];
    struct rlimit files = {1 << 18, 1 << 18};
    int one = 1;
    if (argc != 3) {
        fprintf(stderr, "usage: relay LISTEN TARGET\n");
        return 1;
    }
    struct sockaddr_in here = address(argv[1]), target = address(argv[2]);
    signal(SIGPIPE, SIG_IGN);
    setrlimit(RLIMIT_NOFILE, &files);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (const struct sockaddr *)&here, sizeof here) || listen(listener, 4096))
        die("listen");
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event wake = {.events = EPOLLIN};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &wake);
    for (;;) {
        struct link *dead = NULL; /* freed after the batch: later events of it may name the same link */
        int n = epoll_wait(epoll_fd, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            struct side *s = events[i].data.ptr;
            if (!s) {
                accept_link(listener, &target);
            } else if (!s->link->dead && serve_side(s, events[i].events)) {
                close_link(s->link);
                s->link->next_dead = dead;
                dead = s->link;
            }
        }
        while (dead) {
            struct link *next = dead->next_dead;
            free(dead);
            dead = next;
        }
    }
}
