#include "identity.h"

#include <stdlib.h>
#include <string.h>

#include "session.h"

struct identity *identity_ref(struct identity *i)
{
    if (i)
        atomic_fetch_add(&i->references, 1);
    return i;
}

void identity_unref(struct identity *i)
{
    if (!i || atomic_fetch_sub(&i->references, 1) != 1)
        return;
    sessions_free(i->sessions);
    SSL_CTX_free(i->server);
    SSL_CTX_free(i->client);
    for (size_t n = 0; n < i->n_trust_domains; n++)
        free(i->trust_domains[n]);
    free(i->trust_domains);
    free(i);
}

bool identity_trusts(const struct identity *i, const char *trust_domain, size_t size)
{
    for (size_t n = 0; n < i->n_trust_domains; n++)
        if (strlen(i->trust_domains[n]) == size && memcmp(i->trust_domains[n], trust_domain, size) == 0)
            return true;
    return false;
}
