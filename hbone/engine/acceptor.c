#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "acceptor.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "command.h"
#include "counted.h"
#include "event.h"
#include "flow_verdict.h"
#include "tunnel.h"

enum { BATCH = 64, PAUSE = 100 /* ms */, UNEVEN = 8 /* flows and tunnels more than another worker has */ };

#ifndef EPOLLEXCLUSIVE
#define EPOLLEXCLUSIVE (1u << 28)
#endif

/* Whether new connections will be heard of. */
static bool watch(struct worker *w, struct acceptor *a)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLEXCLUSIVE, .data.ptr = &a->source};
    return epoll_ctl(w->epoll, EPOLL_CTL_ADD, a->listener->fd, &event) == 0 || errno == EEXIST;
}

/* Explicit, since the owner may hold the same open socket by another descriptor. */
static void unwatch(struct worker *w, struct acceptor *a)
{
    epoll_ctl(w->epoll, EPOLL_CTL_DEL, a->listener->fd, NULL);
}

static void try_later(struct worker *w)
{
    timer_set(&w->timers, &w->accept_timer, w->now + PAUSE);
}

void acceptor_add(struct worker *w, struct acceptor *a)
{
    if (atomic_load(&a->listener->closed)) { /* before we heard of it */
        acceptor_free(a);
        return;
    }
    a->worker = w;
    list_append(&w->acceptors, &a->link);
    if (!w->accept_paused && !watch(w, a))
        try_later(w);
}

static void remove_acceptor(struct worker *w, struct acceptor *a)
{
    if (!w->accept_paused)
        unwatch(w, a);
    a->dead = true;
    list_remove(&a->link);
    list_append(&w->dead_acceptors, &a->link);
}

void acceptor_remove_closed(struct worker *w)
{
    struct link *next;
    for (struct link *node = w->acceptors.next; node != &w->acceptors; node = next) {
        struct acceptor *a = container_of(node, struct acceptor, link);
        next = node->next;
        if (atomic_load(&a->listener->closed))
            remove_acceptor(w, a);
    }
}

void acceptor_remove_tag(struct worker *w, uint32_t tag, bool every_tag)
{
    struct link *next;
    for (struct link *node = w->acceptors.next; node != &w->acceptors; node = next) {
        struct acceptor *a = container_of(node, struct acceptor, link);
        next = node->next;
        if (every_tag || a->listener->tag == tag)
            remove_acceptor(w, a);
    }
}

/* ---- accepting */

static void pause_all(struct worker *w)
{
    COUNT(w, accept_paused);
    w->accept_paused = true;
    for (struct link *node = w->acceptors.next; node != &w->acceptors; node = node->next)
        unwatch(w, container_of(node, struct acceptor, link));
    try_later(w);
}

void acceptor_resume(struct worker *w)
{
    w->accept_paused = false;
    for (struct link *node = w->acceptors.next; node != &w->acceptors; node = node->next)
        if (!watch(w, container_of(node, struct acceptor, link)))
            try_later(w);
}

void acceptor_adopt(struct worker *w, int fd, const struct listener *l, const struct address *peer)
{
    COUNT(w, accepted);
    if (l->kind == LISTENER_HBONE)
        tunnel_accepted(w, fd, l, peer);
    else
        flow_accepted(w, fd, l, peer);
}

static struct worker *least_loaded(struct worker *w)
{
    struct engine *e = w->engine;
    struct worker *best = w;
    uint32_t least = atomic_load_explicit(&w->load, memory_order_relaxed);
    least = least > UNEVEN ? least - UNEVEN : 0;
    for (unsigned i = 0; i < e->n_workers; i++) {
        uint32_t load = atomic_load_explicit(&e->workers[i].load, memory_order_relaxed);
        if (load < least) {
            least = load;
            best = &e->workers[i];
        }
    }
    return best;
}

static void place(struct worker *w, int fd, struct listener *l, const struct address *peer)
{
    struct worker *best = least_loaded(w);
    struct command *c = best == w ? NULL : command_new(COMMAND_ADOPT);
    if (!c) {
        acceptor_adopt(w, fd, l, peer);
        return;
    }
    c->fd = fd;
    c->peer = *peer;
    c->listener = listener_ref(l);
    mailbox_post(best, c, true);
}

static bool exhausted(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

void acceptor_on_event(struct acceptor *a)
{
    struct worker *w = a->worker;
    for (int i = 0; i < BATCH; i++) {
        if (a->dead || w->accept_paused || atomic_load_explicit(&a->listener->closed, memory_order_relaxed))
            return;
        if (event_backlog(w)) {
            pause_all(w);
            return;
        }
        struct sockaddr_storage s;
        struct address peer;
        socklen_t size = sizeof s;
        int fd = accept4(a->listener->fd, (struct sockaddr *)&s, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            address_from_sockaddr(&peer, &s);
            place(w, fd, a->listener, &peer);
        } else if (exhausted(errno)) {
            pause_all(w);
            return;
        } else if (errno != ECONNABORTED && errno != EINTR) {
            return;
        }
    }
}
