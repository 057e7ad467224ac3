/* Revocation lists, and what is remembered of a peer's certificates to judge them again when lists change.
 *
 * A list speaks for the certificates of an issuer when it bears its name and its signature verifies with its key.
 * An issuer for which there is no list revokes nothing. A list whose nextUpdate has passed stays in force: what it
 * names stays revoked, and what it does not name stays allowed (as in Istio's ztunnel; a list that comes late would
 * otherwise stop the mesh). Delta and indirect lists, and critical extensions we do not know, are refused. */
#ifndef HBONE_REVOCATION_H
#define HBONE_REVOCATION_H

#include <openssl/x509.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct revocation; /* of an engine; shared by all threads, locks itself */
struct peer_chain; /* of a tunnel: for each certificate its issuer and serial number */

struct revocation *revocation_new(void);
void revocation_free(struct revocation *r); /* after every chain */

/* One file: PEM with any number of lists, DER with one, or nothing. */
struct crl_file {
    const char *bytes;
    size_t size;
};

/* Replaces all lists. False, with one line in `error` and the old lists in force, when one cannot be used. */
bool revocation_set(struct revocation *r, const struct crl_file *files, size_t n, char *error, size_t error_size);
/* How many lists there are, and how many of them are older than they should be. */
void revocation_count(struct revocation *r, size_t *lists, size_t *stale);

/* From a verified chain, leaf first. NULL without memory. */
struct peer_chain *peer_chain_new(struct revocation *r, STACK_OF(X509) *verified);
/* Counted. */
struct peer_chain *peer_chain_ref(struct peer_chain *c);
void peer_chain_free(struct peer_chain *c);
/* Whether a list names any certificate of the chain. */
bool peer_chain_revoked(struct peer_chain *c);
/* The earliest notAfter of the chain, in seconds of Unix time. */
int64_t peer_chain_expiry(const struct peer_chain *c);
/* When it was verified, in seconds of Unix time. */
int64_t peer_chain_verified(const struct peer_chain *c);

#endif
