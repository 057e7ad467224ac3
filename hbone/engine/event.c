#include "event.h"

#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "timer.h"

/* So many are worth a look without anything urgent among them. */
#define HELD_MAX 64

static char *put_text(char *p, const char *text, size_t size)
{
    memcpy(p, text, size);
    p[size] = 0;
    return p + size + 1;
}

struct engine_event *event_new(enum event_type type, const char *const *texts, unsigned n_texts,
                               const struct field *fields, unsigned n_fields)
{
    size_t size = 0;
    for (unsigned i = 0; i < n_texts; i++)
        size += strlen(texts[i]) + 1;
    for (unsigned i = 0; i < n_fields; i++)
        size += (size_t)fields[i].name_size + fields[i].value_size + 2;
    struct engine_event *event = calloc(1, sizeof *event + size);
    if (!event)
        return NULL;
    event->type = type;
    event->texts = n_texts + 2 * n_fields;
    char *p = event->text;
    for (unsigned i = 0; i < n_texts; i++)
        p = put_text(p, texts[i], strlen(texts[i]));
    for (unsigned i = 0; i < n_fields; i++) {
        p = put_text(p, fields[i].name, fields[i].name_size);
        p = put_text(p, fields[i].value, fields[i].value_size);
    }
    return event;
}

void engine_event_free(struct engine_event *event)
{
    free(event);
}

/* Somebody waits for the answer to an arrival. How a flow goes on or ended is only noted down. */
static bool is_urgent(enum event_type type)
{
    return type == EVENT_ACCEPTED || type == EVENT_CONNECT_REQUESTED || type == EVENT_TUNNEL_FAILED ||
           type == EVENT_TUNNEL_OPENED || type == EVENT_TUNNEL_CLOSED || type == EVENT_DEFECT;
}

/* Not the round's time: a round may have begun before what it tells of. */
uint64_t event_clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

void event_post(struct worker *w, struct engine_event *event)
{
    event->next = NULL;
    event->at = event_clock();
    *w->events_tail = event;
    w->events_tail = &event->next;
    w->n_events++;
    w->urgent_events |= is_urgent(event->type);
}

void event_forgotten(struct worker *w, uint64_t epoch)
{
    struct engine_event *event = event_new(EVENT_FORGOTTEN, NULL, 0, NULL, 0);
    if (!event)
        return; /* the next time says the same of this one */
    event->verdict = epoch;
    event_post(w, event);
}

static void signal_owner(struct event_queue *q)
{
    uint64_t one = 1;
    if (q->fd < 0 || q->signalled)
        return;
    q->signalled = true;
    ssize_t written = write(q->fd, &one, sizeof one);
    (void)written; /* can only fail when it is readable already */
}

static bool may_wait(struct worker *w)
{
    uint64_t hold = w->engine->config.event_hold;
    if (w->urgent_events || w->n_events >= HELD_MAX || !hold || w->stopping)
        return false;
    if (!w->events_timer.index)
        timer_set(&w->timers, &w->events_timer, w->now + hold);
    return true;
}

void event_hand_over(struct worker *w)
{
    struct event_queue *q = &w->engine->events;
    if (!w->events || may_wait(w))
        return;
    for (struct engine_event *event = w->events; event; event = event->next) {
        if (event->flow)
            event->flow->admitted = NULL;
        event->flow = NULL;
    }
    pthread_mutex_lock(&q->lock);
    *q->tail = w->events;
    q->tail = w->events_tail;
    atomic_fetch_add(&q->size, w->n_events);
    signal_owner(q);
    pthread_mutex_unlock(&q->lock);
    w->events = NULL;
    w->events_tail = &w->events;
    w->n_events = 0;
    w->urgent_events = false;
}

void event_release(struct worker *w)
{
    w->urgent_events = true;
}

bool event_may_tell(struct worker *w)
{
    enum { TOLD_PER_SECOND = 20 };
    if (w->told_second != w->now / 1000) {
        w->told_second = w->now / 1000;
        w->told = 0;
    }
    return w->told++ < TOLD_PER_SECOND;
}

bool event_backlog(const struct worker *w)
{
    const struct engine *e = w->engine;
    return atomic_load_explicit(&e->events.size, memory_order_relaxed) + w->n_events >= e->config.max_events;
}

bool event_queue_init(struct event_queue *q)
{
    q->head = NULL;
    q->tail = &q->head;
    pthread_mutex_init(&q->lock, NULL);
    q->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    return q->fd >= 0;
}

struct engine_event *event_queue_take(struct event_queue *q, size_t limit)
{
    pthread_mutex_lock(&q->lock);
    struct engine_event *first = q->head, **end = &q->head;
    size_t n = 0;
    for (; *end && n < limit; n++)
        end = &(*end)->next;
    q->head = *end;
    if (!q->head)
        q->tail = &q->head;
    *end = NULL;
    if (!n)
        first = NULL;
    atomic_fetch_sub(&q->size, (unsigned)n);
    if (q->fd >= 0) {
        uint64_t value;
        if (q->signalled) {
            ssize_t got = read(q->fd, &value, sizeof value);
            (void)got;
        }
        q->signalled = false;
        if (q->head)
            signal_owner(q);
    }
    pthread_mutex_unlock(&q->lock);
    return first;
}

void event_queue_free(struct event_queue *q)
{
    while (q->head) {
        struct engine_event *event = q->head;
        q->head = event->next;
        free(event);
    }
    if (q->fd >= 0)
        close(q->fd);
    pthread_mutex_destroy(&q->lock);
}
