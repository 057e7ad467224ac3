/* Which peers are believed, beyond the chain: one SPIFFE identity, the right purpose, the right domain. */
#ifndef HBONE_PEER_CERTIFICATE_H
#define HBONE_PEER_CERTIFICATE_H

#include <openssl/x509.h>

#include "handshake.h"

/* The reason for a failed X509_verify_cert. */
enum reason peer_chain_reason(int code);
/* Checks a leaf whose chain is valid; on success the handshake's `peer_identity` is set. */
enum reason peer_certificate_check(struct handshake *h, X509 *leaf);
/* Whether a client's handshake is to be with this one. */
bool peer_certificate_expected(const struct handshake *h, const char *uri);
/* spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT and nothing else; the trust domain's size, or 0. */
size_t spiffe_trust_domain(const char *uri, size_t size);

#endif
