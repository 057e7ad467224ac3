/* TLS 1.3 record protection (RFC 8446 section 5) with keys taken from a finished handshake. */
#ifndef HBONE_RECORD_H
#define HBONE_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "aead.h"

enum { SECRET_LARGEST = 48 };

enum content_type {
    CONTENT_CHANGE_CIPHER_SPEC = 20,
    CONTENT_ALERT = 21,
    CONTENT_HANDSHAKE = 22,
    CONTENT_APPLICATION_DATA = 23,
};

enum tls_suite { SUITE_AES_128_GCM_SHA256 = 0x1301, SUITE_AES_256_GCM_SHA384 = 0x1302 };

/* One direction. */
struct record_keys {
    struct aead aead;
    uint64_t sequence;
    uint8_t iv[12];
    uint16_t suite;
    uint8_t secret[SECRET_LARGEST];
};

/* `mb` (NULL: none) has to outlive the keys. */
bool record_keys_init(struct record_keys *k, const struct ipsec_mb *mb, unsigned suite, const uint8_t *secret,
                      bool sealing);
/* The next generation of keys (RFC 8446 7.2). */
bool record_keys_update(struct record_keys *k, bool sealing);
void record_keys_free(struct record_keys *k);

/* Seals `size` (at most RECORD_PLAIN) bytes into `out`; the record's size, 0 on failure. plain[size] must be
 * writable: it is borrowed for the content type. */
size_t record_seal(struct record_keys *k, uint8_t *plain, size_t size, enum content_type type, uint8_t *out);
/* Opens a whole record (header included) in place. The payload's size and type, or -1. The payload starts
 * at record + 5. */
ssize_t record_open(struct record_keys *k, uint8_t *record, size_t size, uint8_t *type);

#endif
