/* Verdicts that the owner lets the engine give by itself, for as long as they hold.
 *
 * A kept verdict answers every connection with the same key. The key is all that the owner may rest such a verdict on:
 *   captured   kind, tag, local address (the original destination), for those on their way in the peer's IP address
 *   CONNECT    tag, the tunnel's local address, the peer's IP address and verified identity, authority, and of the
 *              header fields baggage, x-forwarded-network, and forwarded without the `for` it begins with
 * Everything is forgotten at once, by the owner or with an identity, a namespace or a listener's tag; each time begins
 * another epoch. A verdict is kept only in the epoch in which it was made: one that was made before is refused, and
 * nothing found before is found afterwards. All workers share one table; its lock is held for a look-up. */
#ifndef HBONE_VERDICT_H
#define HBONE_VERDICT_H

#include "hpack.h"
#include "state.h"

enum { VERDICT_KEY_LARGEST = 1536 };

struct verdict_key {
    size_t size; /* 0: such a connection has no key, and is asked about every time */
    uint8_t bytes[VERDICT_KEY_LARGEST];
};

void verdict_key_captured(struct verdict_key *k, enum listener_kind kind, uint32_t tag, const struct address *local,
                          const struct address *peer);
void verdict_key_request(struct verdict_key *k, uint32_t tag, const struct address *local, const struct address *peer,
                         const char *identity, const struct field *authority, const struct field *fields, unsigned n);

/* Immutable and counted. */
struct verdict {
    atomic_uint references;
    struct verdict *chain;
    uint64_t hash, number;
    bool tunnel;
    struct address source; /* plain: AF_UNSPEC for none */
    struct route *route;   /* a tunnel's has that part of the header block which is always the same */
    char *varying;         /* the fields behind it: name, value, ... each NUL-terminated, with places to fill in */
    unsigned n_varying;
    size_t key_size;
    uint8_t key[];
};

void verdicts_init(struct verdicts *v);
void verdicts_free(struct verdicts *v);

/* With one reference, for the caller to fill in; NULL without memory. */
struct verdict *verdict_new(const struct verdict_key *k, uint64_t number);
/* 0 (and taken), or why it is not kept: another epoch began (ESTALE), there is one (EEXIST), there are too many (ENOSPC). */
int verdict_put(struct engine *e, struct verdict *v, uint64_t epoch);
/* The verdict for a key, counted, or NULL. */
struct verdict *verdict_find(struct worker *w, const struct verdict_key *k);
void verdict_unref(struct verdict *v);
/* What a flow of this client is to be told the pool: its own header block. NULL without memory. */
struct route *verdict_route(const struct verdict *v, struct worker *w, const struct address *client);

#endif
