#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "tunnel.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "counted.h"
#include "dial.h"
#include "event.h"
#include "pool_entry.h"
#include "registry.h"
#include "socket.h"
#include "transition.h"

static struct tunnel *tunnel_alloc(struct worker *w, int fd)
{
    if (!timer_reserve(&w->timers))
        return NULL;
    struct tunnel *t = calloc(1, sizeof *t);
    if (t) {
        t->source = (struct source){SOURCE_TUNNEL, fd};
        if (socket_watch(w->epoll, fd, &t->source))
            return t;
    }
    free(t);
    timer_release(&w->timers);
    return NULL;
}

static struct tunnel *tunnel_new(struct worker *w, int fd, bool client)
{
    struct engine *e = w->engine;
    struct tunnel *t = tunnel_alloc(w, fd);
    if (!t) {
        COUNT(w, shed_memory);
        return NULL;
    }
    t->worker = w;
    t->client = client;
    t->id = atomic_fetch_add(&e->next_tunnel, 1) + 1;
    t->timer.kind = TIMER_TUNNEL;
    t->heard = w->now;
    t->next_id = 1;
    t->preface_left = client ? 0 : CLIENT_PREFACE_SIZE;
    t->send_window = t->peer_window = WINDOW_DEFAULT;
    t->recv_target = (uint32_t)e->config.connection_window;
    t->recv_window = t->recv_target;
    t->peer_frame = FRAME_DEFAULT_MAX;
    t->peer_streams = UINT32_MAX;
    t->budgets.window_updates = WINDOW_UPDATES_BURST;
    hpack_decoder_init(&t->hpack);
    list_init(&t->starved);
    list_init(&t->pooled);
    list_init(&t->again);
    list_init(&t->dirty);
    list_init(&t->shaking);
    list_append(&w->tunnels, &t->link);
    t->counted_handshake = true;
    atomic_fetch_add(&e->n_handshakes, 1);
    atomic_fetch_add(&e->n_tunnels, 1);
    atomic_fetch_add_explicit(&w->load, 1, memory_order_relaxed);
    return t;
}

/* Whose place a newcomer gets: who has said nothing for longest, or has kept us waiting. Half-open connections would
 * otherwise keep everybody out for as long as a handshake may take. */
static struct tunnel *dispensable(const struct worker *w)
{
    enum { SPARED = 2000 };
    if (!list_empty(&w->silent))
        return container_of(w->silent.next, struct tunnel, shaking);
    if (list_empty(&w->shaking))
        return NULL;
    struct tunnel *oldest = container_of(w->shaking.next, struct tunnel, shaking);
    return w->now >= oldest->accepted + SPARED ? oldest : NULL;
}

static bool make_way(struct worker *w)
{
    struct tunnel *t = dispensable(w);
    if (!t)
        return false;
    t->socket_broken = true; /* no lingering: its descriptor is wanted, too */
    tunnel_fail(t, REASON_overload, SILENTLY, "too many handshakes at once");
    return true;
}

static bool shed(struct worker *w)
{
    struct engine *e = w->engine;
    if (atomic_load_explicit(&e->n_tunnels, memory_order_relaxed) >= e->config.max_tunnels) {
        COUNT(w, shed_tunnels);
        return true;
    }
    if (atomic_load_explicit(&e->n_handshakes, memory_order_relaxed) < e->config.max_handshakes)
        return false;
    COUNT(w, shed_handshakes);
    return !make_way(w);
}

void tunnel_accepted(struct worker *w, int fd, const struct listener *l, const struct address *peer)
{
    struct tunnel *t = shed(w) ? NULL : tunnel_new(w, fd, false);
    if (!t) {
        close_with_reset(fd);
        return;
    }
    COUNT(w, tunnels_accepted);
    atomic_fetch_add(&w->engine->n_sockets[LISTENER_HBONE], 1);
    t->tag = l->tag;
    t->netns = netns_ref(l->netns);
    t->state = TUNNEL_HANDSHAKE; /* its start */
    t->accepted = w->now;
    list_append(&w->silent, &t->shaking);
    t->peer = *peer;
    address_of_socket(&t->local, NULL, fd);
    t->identity = registry_identity(w->engine, l->identity);
    t->phase_deadline = w->now + w->engine->config.handshake_timeout;
    if (t->identity)
        tunnel_rearm(t);
    else
        tunnel_fail(t, REASON_identity_unavailable, SILENTLY, "the listener has no certificate");
}

struct tunnel *tunnel_dial(struct pool_entry *entry, int *error)
{
    struct worker *w = entry->worker;
    const struct route *key = entry->key;
    int fd = dial(w, &key->destination, key->netns, NULL, key->mark);
    if (fd < 0) {
        *error = fd;
        return NULL;
    }
    struct tunnel *t = tunnel_new(w, fd, true);
    if (!t) {
        close(fd);
        *error = -ENOMEM;
        return NULL;
    }
    COUNT(w, tunnels_dialled);
    t->peer = key->destination;
    t->netns = netns_ref(key->netns);
    t->identity = identity_ref(key->identity);
    t->state = TUNNEL_CONNECTING; /* its start */
    t->phase_deadline = w->now + w->engine->config.connect_timeout;
    t->entry = entry;
    tunnel_rearm(t);
    return t;
}

/* False without memory. */
static bool announce_open(struct tunnel *t)
{
    const char *identity = t->peer_identity;
    if (!t->worker->engine->config.tunnel_events)
        return true;
    struct engine_event *event = event_new(EVENT_TUNNEL_OPENED, &identity, 1, NULL, 0);
    if (!event)
        return false;
    event->tag = t->tag;
    event->tunnel = t->id;
    event->inbound = !t->client;
    event->peer = t->peer;
    event->local = t->local;
    event_post(t->worker, event);
    return true;
}

/* What the handshake knows is needed to make a session of the ticket. */
static void await_ticket(struct tunnel *t)
{
    struct handshake *h = t->handshake;
    if (!t->client || !t->identity->sessions)
        return;
    h->sans = NULL; /* the pool's, which may go */
    h->n_sans = 0;
    t->ticketing = h;
    t->handshake = NULL;
}

void tunnel_opened(struct tunnel *t)
{
    struct worker *w = t->worker;
    const struct engine_config *c = &w->engine->config;
    if (!handshake_keys(t->handshake, w->engine->mb, &t->sealing, &t->opening)) {
        tunnel_out_of_memory(t);
        return;
    }
    t->peer_identity = strdup(t->handshake->peer_identity);
    t->peer_chain = peer_chain_ref(t->handshake->peer_chain);
    if (!t->peer_identity || !announce_open(t)) {
        tunnel_out_of_memory(t);
        return;
    }
    t->opened = true;
    if (t->handshake->resumed)
        COUNT(w, handshakes_resumed);
    await_ticket(t);
    tunnel_handshake_over(t);
    if (!tunnel_move(t, TUNNEL_OPEN))
        return;
    t->phase_deadline = w->now + c->preface_timeout;
    t->settings_deadline = w->now + c->settings_timeout;
    t->ping_due = w->now + c->ping_interval;
    t->idle_since = w->now;
    t->expiry_check = c->cut_expired && t->peer_chain ? w->now : 0;
    COUNT(w, tunnels_opened);
    if (!tunnel_preface(t))
        return;
    tunnel_rearm(t);
    if (t->client)
        pool_due(t->entry);
}

void tunnel_greeted(struct tunnel *t)
{
    t->greeted = true;
    t->phase_deadline = 0;
    if (t->client)
        pool_tunnel_greeted(t);
}
