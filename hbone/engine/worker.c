#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "worker.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "acceptor.h"
#include "alarm.h"
#include "command.h"
#include "counted.h"
#include "dial.h"
#include "event.h"
#include "flow_end.h"
#include "flow_table.h"
#include "flow_time.h"
#include "plain_event.h"
#include "pool.h"
#include "socket.h"
#include "stream_send.h"
#include "tunnel.h"
#include "tunnel_event.h"
#include "worker_commands.h"

enum { EVENTS = 512, TRIM_INTERVAL = 1000 /* ms */, OWN_TIMERS = 3 };

/* ---- a round */

static void run_source(struct source *source, uint32_t events)
{
    switch (source->kind) {
    case SOURCE_PLAIN:
        plain_on_event(container_of(source, struct plain, source), events);
        break;
    case SOURCE_TUNNEL:
        tunnel_on_event(container_of(source, struct tunnel, source), events);
        break;
    case SOURCE_ACCEPTOR:
        acceptor_on_event(container_of(source, struct acceptor, source));
        break;
    case SOURCE_ALARM:
        alarm_rang(container_of(source, struct worker, alarm));
        break; /* timers are looked at in every round, */
    case SOURCE_WAKE:
        break; /* and the mailbox is emptied in every round */
    }
}

/* Tunnels that had more to read than their turns. */
static void read_again(struct worker *w)
{
    struct link turn, *node;
    list_init(&turn);
    list_splice(&turn, &w->again);
    while ((node = list_pop(&turn)))
        tunnel_read(container_of(node, struct tunnel, again));
}

/* One turn for everybody who was ready when the round began; those with more to do queue again. */
static void run_ready(struct worker *w)
{
    struct link turn, *node;
    read_again(w);
    list_init(&turn);
    list_splice(&turn, &w->ready);
    while ((node = list_pop(&turn))) {
        struct flow *f = container_of(node, struct flow, queue);
        if (f->state != FLOW_RELAYING || f->doomed)
            continue;
        if (f->shape == SHAPE_PLAIN)
            plain_relay(f);
        else
            stream_pump(f);
    }
}

static void run_timers(struct worker *w)
{
    struct timer *t;
    while ((t = timer_due(&w->timers, w->now))) {
        if (t->kind == TIMER_FLOW)
            flow_on_timer(container_of(t, struct flow, timer));
        else if (t->kind == TIMER_TUNNEL)
            tunnel_on_timer(container_of(t, struct tunnel, timer));
        else if (t->kind == TIMER_ACCEPT)
            acceptor_resume(w);
        else if (t->kind == TIMER_EVENTS)
            event_release(w);
        else
            buffers_trim(&w->buffers);
    }
}

/* Memory kept for reuse goes back, most of it each time, when it is not needed for a while. */
static void plan_trim(struct worker *w)
{
    if (!w->trim_timer.index && buffers_ample(&w->buffers))
        timer_set(&w->timers, &w->trim_timer, w->now + TRIM_INTERVAL);
}

static void flush_dirty(struct worker *w)
{
    struct link *node;
    while ((node = list_pop(&w->dirty))) /* flushing may add more */
        tunnel_flush(container_of(node, struct tunnel, dirty));
}

/* Events of the round may have pointed at what died in it; now nothing does. */
static void free_dead(struct worker *w)
{
    struct link *node;
    while ((node = list_pop(&w->dead_flows)))
        flow_free(container_of(node, struct flow, link));
    while ((node = list_pop(&w->dead_tunnels)))
        tunnel_free(container_of(node, struct tunnel, link));
    while ((node = list_pop(&w->dead_acceptors)))
        acceptor_free(container_of(node, struct acceptor, link));
}

static void finish_round(struct worker *w)
{
    pool_balance_due(w);
    flush_dirty(w);
    while (!list_empty(&w->due_pools)) { /* a flush may have ended a tunnel, and set its flows free */
        pool_balance_due(w);
        flush_dirty(w);
    }
    event_hand_over(w);
    free_dead(w);
    if (w->urgent_events) /* what died told of it itself */
        event_hand_over(w);
    plan_trim(w);
}

static uint64_t clock_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void round_of(struct worker *w)
{
    struct epoll_event events[EVENTS];
    bool idle = list_empty(&w->ready) && list_empty(&w->again);
    int n = epoll_wait(w->epoll, events, EVENTS, idle ? alarm_before_sleep(w) : 0);
    w->now = clock_now();
    COUNT(w, loops);
    for (int i = 0; i < n; i++)
        run_source(events[i].data.ptr, events[i].events);
    worker_commands(w);
    run_ready(w);
    run_timers(w);
    finish_round(w);
}

/* ---- the end */

static void abort_all(struct worker *w)
{
    struct link *node;
    acceptor_remove_tag(w, 0, true);
    while ((node = w->tunnels.next) != &w->tunnels) {
        struct tunnel *t = container_of(node, struct tunnel, link);
        tunnel_fail(t, REASON_shutdown, SILENTLY, NULL);
        tunnel_fail(t, REASON_shutdown, SILENTLY, NULL); /* no lingering now */
    }
    while ((node = w->flows.next) != &w->flows)
        flow_drop(container_of(node, struct flow, link), REASON_shutdown, 0);
    pool_balance_due(w);
    free_dead(w);
    event_hand_over(w);
}

static void *run(void *argument)
{
    struct worker *w = argument;
    w->now = clock_now();
    while (!w->stopping)
        round_of(w);
    abort_all(w);
    dial_leave(w);
    return NULL;
}

/* ---- setting up */

static void init_lists(struct worker *w)
{
    struct link *lists[] = {&w->flows,         &w->tunnels,     &w->acceptors, &w->dead_flows,
                            &w->dead_tunnels, &w->dead_acceptors, &w->ready,     &w->due_pools,
                            &w->again,        &w->dirty,       &w->silent,    &w->shaking};
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++)
        list_init(lists[i]);
}

static bool reserve_timers(struct worker *w)
{
    w->accept_timer.kind = TIMER_ACCEPT;
    w->trim_timer.kind = TIMER_TRIM;
    w->events_timer.kind = TIMER_EVENTS;
    for (int i = 0; i < OWN_TIMERS; i++)
        if (!timer_reserve(&w->timers))
            return false;
    return true;
}

int worker_init(struct worker *w, struct engine *e, unsigned index)
{
    w->engine = e;
    w->index = index;
    w->home_netns = w->wake.fd = w->alarm.fd = -1;
    w->wake.kind = SOURCE_WAKE;
    w->events_tail = &w->events;
    w->tunnel_ended = pool_tunnel_ended;
    if (getrandom(&w->random, sizeof w->random, 0) < 0)
        return -errno;
    init_lists(w);
    w->epoll = epoll_create1(EPOLL_CLOEXEC);
    w->wake.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    w->home_netns = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    if (w->epoll < 0 || w->wake.fd < 0 || w->home_netns < 0 || !alarm_init(w))
        return -errno;
    w->read_buffer = malloc(READ_SIZE);
    w->seal_buffer = block_get(&w->buffers);
    w->gathers = malloc(GATHERS * sizeof *w->gathers);
    if (!w->read_buffer || !w->seal_buffer || !w->gathers || !reserve_timers(w) ||
        !header_list_init(&w->headers, e->config.max_header_list) || !socket_watch(w->epoll, w->wake.fd, &w->wake))
        return -ENOMEM;
    return 0;
}

int worker_start(struct worker *w)
{
    sigset_t all, before;
    sigfillset(&all); /* signals are the owner's */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&w->thread, NULL, run, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    w->started = !error;
    if (!error)
        pthread_setname_np(w->thread, "hbone");
    return -error;
}

static void close_if_open(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void worker_close(struct worker *w)
{
    if (!w->engine)
        return; /* one before it could not be set up */
    pool_free(w);
    buffers_free(&w->buffers);
    header_list_free(&w->headers);
    timer_heap_free(&w->timers);
    close_if_open(&w->epoll);
    close_if_open(&w->home_netns);
    alarm_close(w);
    mailbox_close(w);
    free(w->read_buffer);
    free(w->seal_buffer);
    free(w->gathers);
}

void worker_free(struct worker *w)
{
    flow_table_free(&w->table);
    pthread_mutex_destroy(&w->mailbox.lock);
}
