/* Which peers are believed, beyond the chain: one SPIFFE identity, the right purpose, the right domain. */
#ifndef HBONE_PEER_CERTIFICATE_H
#define HBONE_PEER_CERTIFICATE_H

#include <openssl/x509.h>

#include "identity.h"
#include "reason.h"

enum { IDENTITY_LARGEST = 2048 };

/* The reason for a failed X509_verify_cert. */
enum reason peer_chain_reason(int code);
/* Who may be at the other end: of the names, for a client; of an identity's trust domains, for a server. */
struct peer_expected {
    bool client; /* we are */
    const struct identity *identity;
    const char *names; /* NUL-terminated one behind the other */
    size_t n_names;
};
bool peer_named(const struct peer_expected *who, const char *uri);
/* Checks a leaf whose chain is valid. `uri` becomes a copy of its name, the caller's, or NULL; without REASON_ok, one line in
 * `detail` says why. */
enum reason peer_certificate_check(const struct peer_expected *who, X509 *leaf, char **uri, char *detail, size_t size);
/* spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT and nothing else; the trust domain's size, or 0. */
size_t spiffe_trust_domain(const char *uri, size_t size);

#endif
