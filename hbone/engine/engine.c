#include "engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "command.h"
#include "event.h"
#include "flow_table.h"
#include "registry.h"
#include "state.h"
#include "verdict.h"
#include "worker.h"

const char *const engine_reasons[REASON_COUNT] = {
#define X(name) #name,
    REASONS(X)
#undef X
};

void engine_config_defaults(struct engine_config *config)
{
#define X(name, unit, value, least, most) config->name = (uint64_t)((unit) * (value));
    ENGINE_CONFIG(X)
#undef X
}

/* ---- start and stop */

static int start_workers(struct engine *e)
{
    int error = 0;
    for (unsigned i = 0; i < e->n_workers && !error; i++)
        error = worker_init(&e->workers[i], e, i);
    for (unsigned i = 0; i < e->n_workers && !error; i++)
        error = worker_start(&e->workers[i]);
    return error;
}

/* A library that does not do what OpenSSL does is none. */
static struct ipsec_mb *load_ipsec_mb(void)
{
    struct ipsec_mb *mb = ipsec_mb_load();
    if (mb && aead_agrees(mb))
        return mb;
    ipsec_mb_free(mb);
    return NULL;
}

struct engine *engine_start(const struct engine_config *config)
{
    struct engine *e = calloc(1, sizeof *e);
    struct worker *workers = calloc(config->workers, sizeof *workers);
    if (!e || !workers) {
        free(e);
        free(workers);
        errno = ENOMEM;
        return NULL;
    }
    e->config = *config;
    e->workers = workers;
    e->n_workers = (unsigned)config->workers;
    for (unsigned i = 0; i < e->n_workers; i++) { /* what was not set up is not closed either */
        workers[i].epoll = workers[i].wake.fd = workers[i].home_netns = -1;
        mailbox_init(&workers[i].mailbox);
    }
    pthread_mutex_init(&e->lock, NULL);
    pthread_mutex_init(&e->counters_lock, NULL);
    verdicts_init(&e->verdicts);
    e->mb = config->ipsec_mb ? load_ipsec_mb() : NULL;
    e->revocation = revocation_new();
    int error = !e->revocation ? -ENOMEM : event_queue_init(&e->events) ? start_workers(e) : -errno;
    if (!error)
        return e;
    engine_free(e);
    errno = -error;
    return NULL;
}

static void close_event_fd(struct event_queue *q)
{
    pthread_mutex_lock(&q->lock);
    if (q->fd >= 0)
        close(q->fd);
    q->fd = -1;
    pthread_mutex_unlock(&q->lock);
}

void engine_stop(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    bool first = !e->stopped;
    e->stopped = true;
    pthread_mutex_unlock(&e->lock);
    if (!first)
        return;
    for (unsigned i = 0; i < e->n_workers; i++)
        mailbox_notice(&e->workers[i], NOTICE_STOP);
    for (unsigned i = 0; i < e->n_workers; i++)
        if (e->workers[i].started)
            pthread_join(e->workers[i].thread, NULL);
    for (unsigned i = 0; i < e->n_workers; i++)
        worker_close(&e->workers[i]); /* counters stay readable until engine_free */
    close_event_fd(&e->events);
    engine_forget(e); /* and let go of what verdicts hold */
    pthread_mutex_lock(&e->lock);
    registry_drop(e);
    pthread_mutex_unlock(&e->lock);
}

void engine_free(struct engine *e)
{
    engine_stop(e);
    for (unsigned i = 0; i < e->n_workers; i++)
        worker_free(&e->workers[i]);
    event_queue_free(&e->events);
    verdicts_free(&e->verdicts);
    revocation_free(e->revocation);
    ipsec_mb_free(e->mb);
    pthread_mutex_destroy(&e->lock);
    pthread_mutex_destroy(&e->counters_lock);
    free(e->workers);
    free(e);
}

bool engine_uses_ipsec_mb(const struct engine *e)
{
    return e->mb != NULL;
}

int engine_event_fd(const struct engine *e)
{
    return e->events.fd;
}

struct engine_event *engine_take(struct engine *e, size_t limit)
{
    return event_queue_take(&e->events, limit);
}

/* ---- numbers */

size_t engine_counters(struct engine *e, struct engine_counter *out, size_t room)
{
    size_t n = 0;
    pthread_mutex_lock(&e->counters_lock);
    for (unsigned i = 0; i < e->n_workers; i++)
        n += flow_table_counters(&e->workers[i].table, out + n, room - n);
    pthread_mutex_unlock(&e->counters_lock);
    return n;
}

size_t engine_stats(struct engine *e, struct engine_stat *out, size_t room)
{
    size_t n = 0, lists, stale;
    pthread_mutex_lock(&e->verdicts.lock);
    uint64_t kept = atomic_load(&e->verdicts.n), forgotten = e->verdicts.forgotten;
    pthread_mutex_unlock(&e->verdicts.lock);
    revocation_count(e->revocation, &lists, &stale);
    struct engine_stat gauges[] = {
        {"flows_live", atomic_load(&e->n_flows)},
        {"tunnels_live", atomic_load(&e->n_tunnels)},
        {"handshakes_live", atomic_load(&e->n_handshakes)},
        {"sockets_outbound", atomic_load(&e->n_sockets[LISTENER_OUTBOUND])},
        {"sockets_inbound", atomic_load(&e->n_sockets[LISTENER_INBOUND])},
        {"sockets_hbone", atomic_load(&e->n_sockets[LISTENER_HBONE])},
        {"events_waiting", atomic_load(&e->events.size)},
        {"verdicts_kept", kept},
        {"verdicts_forgotten", forgotten},
        {"crls", lists},
        {"crls_stale", stale},
    };
    for (size_t i = 0; i < sizeof gauges / sizeof gauges[0] && n < room; i++)
        out[n++] = gauges[i];
#define X(stat)                                                                                    \
    if (n < room) {                                                                                \
        out[n] = (struct engine_stat){#stat, 0};                                                   \
        for (unsigned i = 0; i < e->n_workers; i++)                                                \
            out[n].value += stat_get(&e->workers[i].stats.stat);                                   \
        n++;                                                                                       \
    }
    STATS(X)
#undef X
    return n;
}
