#include "command.h"

#include <stdlib.h>
#include <unistd.h>

#include "counted.h"

void mailbox_init(struct mailbox *m)
{
    m->head = NULL;
    m->tail = &m->head;
    pthread_mutex_init(&m->lock, NULL);
}

/* Under the lock; one write for any number of commands. */
static void signal_worker(struct worker *w)
{
    uint64_t one = 1;
    if (w->mailbox.signalled || w->mailbox.closed || !(w->mailbox.head || w->mailbox.notices))
        return;
    w->mailbox.signalled = true;
    ssize_t written = write(w->wake.fd, &one, sizeof one);
    (void)written;
}

void mailbox_post(struct worker *w, struct command *c, bool wake)
{
    struct mailbox *m = &w->mailbox;
    c->next = NULL;
    pthread_mutex_lock(&m->lock);
    if (m->closed) {
        pthread_mutex_unlock(&m->lock);
        command_free(c);
        return;
    }
    *m->tail = c;
    m->tail = &c->next;
    atomic_store_explicit(&m->filled, true, memory_order_release);
    if (wake)
        signal_worker(w);
    pthread_mutex_unlock(&m->lock);
}

void mailbox_wake(struct worker *w)
{
    if (!atomic_load_explicit(&w->mailbox.filled, memory_order_acquire))
        return;
    pthread_mutex_lock(&w->mailbox.lock);
    signal_worker(w);
    pthread_mutex_unlock(&w->mailbox.lock);
}

void mailbox_notice(struct worker *w, enum notice notice)
{
    struct mailbox *m = &w->mailbox;
    pthread_mutex_lock(&m->lock);
    m->notices |= notice;
    atomic_store_explicit(&m->filled, true, memory_order_release);
    signal_worker(w);
    pthread_mutex_unlock(&m->lock);
}

struct command *mailbox_take(struct worker *w, unsigned *notices)
{
    struct mailbox *m = &w->mailbox;
    *notices = 0;
    if (!atomic_load_explicit(&m->filled, memory_order_acquire))
        return NULL;
    pthread_mutex_lock(&m->lock);
    struct command *first = m->head;
    m->head = NULL;
    m->tail = &m->head;
    *notices = m->notices;
    m->notices = 0;
    if (m->signalled) {
        uint64_t value;
        ssize_t got = read(w->wake.fd, &value, sizeof value);
        (void)got;
        m->signalled = false;
    }
    atomic_store_explicit(&m->filled, false, memory_order_release);
    pthread_mutex_unlock(&m->lock);
    return first;
}

void mailbox_close(struct worker *w)
{
    struct mailbox *m = &w->mailbox;
    pthread_mutex_lock(&m->lock);
    struct command *c = m->head;
    m->head = NULL;
    m->tail = &m->head;
    m->closed = true;
    if (w->wake.fd >= 0)
        close(w->wake.fd);
    w->wake.fd = -1;
    pthread_mutex_unlock(&m->lock);
    while (c) {
        struct command *next = c->next;
        command_free(c);
        c = next;
    }
}

struct command *command_new(enum command_type type)
{
    struct command *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->type = type;
    c->fd = -1;
    return c;
}

void command_free(struct command *c)
{
    if (c->fd >= 0)
        close(c->fd);
    listener_unref(c->listener);
    acceptor_free(c->acceptor);
    route_free(c->route);
    free(c);
}
