/* From PEM to an identity: what loads and belongs together, and how OpenSSL is set up for it. */
#ifndef HBONE_CREDENTIALS_H
#define HBONE_CREDENTIALS_H

#include "identity.h"

struct identity_material {
    const char *chain, *key, *roots; /* PEM */
    size_t chain_size, key_size, roots_size;
    const char *const *trust_domains;
    size_t n_trust_domains;
    struct revocation *revocation;
    size_t max_sessions;
    int64_t session_lifetime; /* s */
};

/* NULL with one line in `error` when the material does not load or does not belong together. */
struct identity *identity_new(uint32_t id, const struct identity_material *m, char *error, size_t error_size);

#endif
