#include "session.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum role { SERVED, DIALLED, ROLES };

/* Whichever of the two it has is its key. */
struct entry {
    SSL_SESSION *session; /* NULL: free */
    struct session_peer peer;
    struct session_place place;
};

/* The youngest at `next` - 1; a new one takes the place of the oldest. Looked through from the youngest: whoever comes
 * back came last most of the time. */
struct ring {
    struct entry *entries;
    size_t next, used;
};

struct sessions {
    pthread_mutex_t lock;
    size_t most;
    struct ring rings[ROLES];
};

struct sessions *sessions_new(size_t most)
{
    struct sessions *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    pthread_mutex_init(&s->lock, NULL);
    s->most = most;
    return s;
}

void session_peer_free(struct session_peer *peer)
{
    free(peer->identity);
    peer_chain_free(peer->chain);
    *peer = (struct session_peer){0};
}

static void entry_clear(struct entry *e)
{
    SSL_SESSION_free(e->session);
    session_peer_free(&e->peer);
    *e = (struct entry){0};
}

void sessions_free(struct sessions *s)
{
    if (!s)
        return;
    for (int role = 0; role < ROLES; role++) {
        for (size_t i = 0; i < s->rings[role].used; i++)
            entry_clear(&s->rings[role].entries[i]);
        free(s->rings[role].entries);
    }
    pthread_mutex_destroy(&s->lock);
    free(s);
}

static bool copy_peer(struct session_peer *to, const struct session_peer *from)
{
    to->identity = from->identity ? strdup(from->identity) : NULL;
    to->chain = peer_chain_ref(from->chain);
    if (to->identity && to->chain)
        return true;
    session_peer_free(to);
    return false;
}

static bool same_place(const struct session_place *a, const struct session_place *b)
{
    return a->netns == b->netns && address_equal(&a->destination, &b->destination);
}

/* ---- rings; the lock is held */

static bool has_id(const struct entry *e, const uint8_t *id, size_t size)
{
    unsigned own_size;
    const unsigned char *own = SSL_SESSION_get_id(e->session, &own_size);
    return size && own_size == size && memcmp(own, id, size) == 0;
}

static struct entry *nth_youngest(const struct sessions *s, const struct ring *r, size_t n)
{
    return &r->entries[(r->next + s->most - 1 - n) % s->most];
}

static struct entry *find(struct sessions *s, enum role role, const uint8_t *id, size_t size,
                          const struct session_place *place)
{
    struct ring *r = &s->rings[role];
    for (size_t n = 0; n < r->used; n++) {
        struct entry *e = nth_youngest(s, r, n);
        if (e->session && (place ? same_place(&e->place, place) : has_id(e, id, size)))
            return e;
    }
    return NULL;
}

static struct entry *oldest(struct sessions *s, enum role role)
{
    struct ring *r = &s->rings[role];
    if (!s->most || (!r->entries && !(r->entries = calloc(s->most, sizeof *r->entries))))
        return NULL;
    struct entry *e = &r->entries[r->next];
    r->next = (r->next + 1) % s->most;
    if (r->used < s->most)
        r->used++;
    entry_clear(e);
    return e;
}

static bool put(struct entry *e, SSL_SESSION *session, const struct session_peer *peer)
{
    if (!e || !copy_peer(&e->peer, peer))
        return false;
    e->session = session;
    return true;
}

static int64_t now(void)
{
    return (int64_t)time(NULL);
}

/* What was proved then is still believed. */
static bool still_good(const struct entry *e)
{
    int64_t made = (int64_t)SSL_SESSION_get_time(e->session);
    return SSL_SESSION_is_resumable(e->session) && made <= now() &&
           now() < made + (int64_t)SSL_SESSION_get_timeout(e->session) && now() < peer_chain_expiry(e->peer.chain) &&
           !peer_chain_revoked(e->peer.chain);
}

static SSL_SESSION *take(struct entry *e, struct session_peer *peer)
{
    if (!e)
        return NULL;
    if (!still_good(e)) {
        entry_clear(e);
        return NULL;
    }
    return copy_peer(peer, &e->peer) && SSL_SESSION_up_ref(e->session) ? e->session : NULL;
}

/* ---- the door */

bool session_keep_served(struct sessions *s, SSL_SESSION *session, const struct session_peer *peer)
{
    pthread_mutex_lock(&s->lock);
    bool kept = put(oldest(s, SERVED), session, peer);
    pthread_mutex_unlock(&s->lock);
    return kept;
}

bool session_keep_dialled(struct sessions *s, SSL_SESSION *session, const struct session_peer *peer,
                          const struct session_place *place)
{
    pthread_mutex_lock(&s->lock);
    struct entry *e = find(s, DIALLED, NULL, 0, place);
    if (e)
        entry_clear(e);
    else
        e = oldest(s, DIALLED);
    bool kept = put(e, session, peer);
    if (kept)
        e->place = *place;
    pthread_mutex_unlock(&s->lock);
    return kept;
}

SSL_SESSION *session_served(struct sessions *s, const uint8_t *id, size_t size, struct session_peer *peer)
{
    pthread_mutex_lock(&s->lock);
    SSL_SESSION *session = take(find(s, SERVED, id, size, NULL), peer);
    pthread_mutex_unlock(&s->lock);
    return session;
}

SSL_SESSION *session_dialled(struct sessions *s, const struct session_place *place, struct session_peer *peer)
{
    pthread_mutex_lock(&s->lock);
    SSL_SESSION *session = take(find(s, DIALLED, NULL, 0, place), peer);
    pthread_mutex_unlock(&s->lock);
    return session;
}

void session_drop_dialled(struct sessions *s, const struct session_place *place)
{
    pthread_mutex_lock(&s->lock);
    struct entry *e = find(s, DIALLED, NULL, 0, place);
    if (e)
        entry_clear(e);
    pthread_mutex_unlock(&s->lock);
}
