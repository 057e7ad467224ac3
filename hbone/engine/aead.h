/* AES-GCM with a nonce of 12 bytes and a tag of 16 (RFC 5116 5.1, 5.2), done by ipsec-mb where that is loaded, else
 * by OpenSSL. */
#ifndef HBONE_AEAD_H
#define HBONE_AEAD_H

#include <openssl/evp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ipsec_mb.h"

enum { AEAD_NONCE = 12, AEAD_TAG = 16, AEAD_KEY_LARGEST = 32 };

/* One key in one direction. All zero: none. */
struct aead {
    const struct ipsec_mb *mb;
    struct gcm_key_data *schedule; /* with mb */
    EVP_CIPHER_CTX *cipher;        /* without */
    bool wide;
};

/* `key` has 32 bytes when `wide` (AES-256), else 16; it takes the place of the one before. */
bool aead_set_key(struct aead *a, const struct ipsec_mb *mb, bool wide, const uint8_t *key, bool sealing);
void aead_free(struct aead *a);

/* Seals `size` bytes of `text` to `out`, which has room for the tag behind them. */
bool aead_seal(struct aead *a, const uint8_t nonce[AEAD_NONCE], const uint8_t *aad, size_t aad_size,
               const uint8_t *text, size_t size, uint8_t *out);
/* Opens `size` bytes in place; the tag lies behind them. False unless they are authentic. */
bool aead_open(struct aead *a, const uint8_t nonce[AEAD_NONCE], const uint8_t *aad, size_t aad_size, uint8_t *text,
               size_t size);

/* Whether ipsec-mb and OpenSSL seal alike, open each other's, and refuse what was altered. */
bool aead_agrees(const struct ipsec_mb *mb);

#endif
