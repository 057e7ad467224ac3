#include "session.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum role { SERVED, DIALLED, ROLES };

/* No place has more than this part of the room, so that a busy one does not drive the others out. */
enum { PLACE_SHARE = 4 };

struct entry {
    SSL_SESSION *session; /* NULL: free */
    uint64_t number;      /* later ones have higher numbers */
    struct session_peer peer;
    struct session_place place; /* DIALLED; a served one is found by its own number on the wire */
};

struct sessions {
    pthread_mutex_t lock;
    size_t most;
    int64_t lifetime;
    uint64_t last;
    struct peer_chain *own;
    struct entry *entries[ROLES]; /* NULL until there is one */
};

struct sessions *sessions_new(size_t most, int64_t lifetime, struct peer_chain *own)
{
    struct sessions *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    pthread_mutex_init(&s->lock, NULL);
    s->most = most;
    s->lifetime = lifetime;
    s->own = peer_chain_ref(own);
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
        for (size_t i = 0; s->entries[role] && i < s->most; i++)
            entry_clear(&s->entries[role][i]);
        free(s->entries[role]);
    }
    peer_chain_free(s->own);
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

/* ---- entries; the lock is held */

static bool has_id(const struct entry *e, const uint8_t *id, size_t size)
{
    unsigned own_size;
    const unsigned char *own = SSL_SESSION_get_id(e->session, &own_size);
    return size && own_size == size && memcmp(own, id, size) == 0;
}

static struct entry *served_as(struct sessions *s, const uint8_t *id, size_t size)
{
    for (size_t i = 0; s->entries[SERVED] && i < s->most; i++) {
        struct entry *e = &s->entries[SERVED][i];
        if (e->session && has_id(e, id, size))
            return e;
    }
    return NULL;
}

/* How many there are with this place; its youngest and its oldest. */
static size_t dialled_to(struct sessions *s, const struct session_place *place, struct entry **youngest,
                         struct entry **oldest)
{
    size_t n = 0;
    *youngest = *oldest = NULL;
    for (size_t i = 0; s->entries[DIALLED] && i < s->most; i++) {
        struct entry *e = &s->entries[DIALLED][i];
        if (!e->session || !same_place(&e->place, place))
            continue;
        n++;
        if (!*youngest || e->number > (*youngest)->number)
            *youngest = e;
        if (!*oldest || e->number < (*oldest)->number)
            *oldest = e;
    }
    return n;
}

/* A free one, or that of the oldest. */
static struct entry *room_for(struct sessions *s, enum role role)
{
    if (!s->entries[role] && !(s->entries[role] = calloc(s->most, sizeof *s->entries[role])))
        return NULL;
    struct entry *best = &s->entries[role][0];
    for (size_t i = 0; i < s->most && best->session; i++) {
        struct entry *e = &s->entries[role][i];
        if (!e->session || e->number < best->number)
            best = e;
    }
    return best;
}

static bool put(struct sessions *s, struct entry *e, SSL_SESSION *session, const struct session_peer *peer)
{
    if (!e)
        return false;
    entry_clear(e);
    if (!copy_peer(&e->peer, peer))
        return false;
    e->session = session;
    e->number = ++s->last;
    return true;
}

/* Not time(): that one may still tell the last second when OpenSSL has just noted the new one. */
static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec;
}

/* The lists of today and the clock allow both certificates, and it is not too long ago that the peer showed its key. */
static bool still_good(const struct sessions *s, const struct entry *e)
{
    int64_t made = (int64_t)SSL_SESSION_get_time(e->session), proved = peer_chain_verified(e->peer.chain);
    return SSL_SESSION_is_resumable(e->session) && made <= now() &&
           now() < made + (int64_t)SSL_SESSION_get_timeout(e->session) && proved <= now() &&
           now() < proved + s->lifetime && now() < peer_chain_expiry(e->peer.chain) &&
           now() < peer_chain_expiry(s->own) && !peer_chain_revoked(e->peer.chain) && !peer_chain_revoked(s->own);
}

/* Takes a session out: it is used once. */
static SSL_SESSION *take(struct sessions *s, struct entry *e, struct session_peer *peer)
{
    SSL_SESSION *session = NULL;
    if (!e)
        return NULL;
    if (still_good(s, e)) {
        session = e->session;
        *peer = e->peer;
        *e = (struct entry){0};
    }
    entry_clear(e);
    return session;
}

/* ---- the door */

bool session_keep_served(struct sessions *s, SSL_SESSION *session, const struct session_peer *peer)
{
    pthread_mutex_lock(&s->lock);
    bool kept = put(s, room_for(s, SERVED), session, peer);
    pthread_mutex_unlock(&s->lock);
    return kept;
}

bool session_keep_dialled(struct sessions *s, SSL_SESSION *session, const struct session_peer *peer,
                          const struct session_place *place)
{
    struct entry *youngest, *oldest;
    pthread_mutex_lock(&s->lock);
    size_t share = s->most / PLACE_SHARE ? s->most / PLACE_SHARE : 1;
    struct entry *e = dialled_to(s, place, &youngest, &oldest) < share ? room_for(s, DIALLED) : oldest;
    bool kept = put(s, e, session, peer);
    if (kept)
        e->place = *place;
    pthread_mutex_unlock(&s->lock);
    return kept;
}

SSL_SESSION *session_served(struct sessions *s, const uint8_t *id, size_t size, struct session_peer *peer)
{
    pthread_mutex_lock(&s->lock);
    SSL_SESSION *session = take(s, served_as(s, id, size), peer);
    pthread_mutex_unlock(&s->lock);
    return session;
}

SSL_SESSION *session_dialled(struct sessions *s, const struct session_place *place, struct session_peer *peer)
{
    struct entry *youngest, *oldest;
    pthread_mutex_lock(&s->lock);
    dialled_to(s, place, &youngest, &oldest);
    SSL_SESSION *session = take(s, youngest, peer);
    pthread_mutex_unlock(&s->lock);
    return session;
}

void session_drop_dialled(struct sessions *s, const struct session_place *place)
{
    struct entry *youngest, *oldest;
    pthread_mutex_lock(&s->lock);
    while (dialled_to(s, place, &youngest, &oldest))
        entry_clear(youngest);
    pthread_mutex_unlock(&s->lock);
}
