#include "record.h"

#include <openssl/crypto.h>
#include <openssl/hmac.h>
#include <string.h>

#include "buffer.h"
#include "wire.h"

enum { HEADER = 5 };

static const EVP_MD *digest_of(unsigned suite, size_t *size)
{
    *size = suite == SUITE_AES_256_GCM_SHA384 ? 48 : 32;
    return suite == SUITE_AES_256_GCM_SHA384 ? EVP_sha384() : EVP_sha256();
}

/* HKDF-Expand-Label with an empty context (RFC 8446 7.1), for no more than one block of output. */
static bool expand_label(unsigned suite, const uint8_t *secret, const char *label, uint8_t *out, size_t size)
{
    uint8_t info[64], block[EVP_MAX_MD_SIZE];
    unsigned block_size = 0;
    size_t digest_size, label_size = strlen(label), n = 0;
    const EVP_MD *digest = digest_of(suite, &digest_size);
    put_u16(info, (uint32_t)size);
    info[2] = (uint8_t)(6 + label_size);
    memcpy(info + 3, "tls13 ", 6);
    memcpy(info + 9, label, label_size);
    n = 9 + label_size;
    info[n++] = 0;
    info[n++] = 1; /* the block's number */
    if (!HMAC(digest, secret, (int)digest_size, info, n, block, &block_size) || size > block_size)
        return false;
    memcpy(out, block, size);
    OPENSSL_cleanse(block, sizeof block);
    return true;
}

static bool derive(struct record_keys *k, const struct ipsec_mb *mb, bool sealing)
{
    uint8_t key[AEAD_KEY_LARGEST];
    bool wide = k->suite == SUITE_AES_256_GCM_SHA384;
    k->sequence = 0;
    bool made = expand_label(k->suite, k->secret, "key", key, wide ? 32 : 16) &&
                expand_label(k->suite, k->secret, "iv", k->iv, sizeof k->iv) &&
                aead_set_key(&k->aead, mb, wide, key, sealing);
    OPENSSL_cleanse(key, sizeof key);
    return made;
}

bool record_keys_init(struct record_keys *k, const struct ipsec_mb *mb, unsigned suite, const uint8_t *secret,
                      bool sealing)
{
    size_t size;
    if (suite != SUITE_AES_256_GCM_SHA384 && suite != SUITE_AES_128_GCM_SHA256)
        return false;
    k->suite = (uint16_t)suite;
    digest_of(suite, &size);
    memcpy(k->secret, secret, size);
    return derive(k, mb, sealing);
}

bool record_keys_update(struct record_keys *k, bool sealing)
{
    uint8_t next[SECRET_LARGEST];
    size_t size;
    digest_of(k->suite, &size);
    if (!expand_label(k->suite, k->secret, "traffic upd", next, size))
        return false;
    memcpy(k->secret, next, size);
    OPENSSL_cleanse(next, sizeof next);
    return derive(k, k->aead.mb, sealing);
}

void record_keys_free(struct record_keys *k)
{
    aead_free(&k->aead);
    OPENSSL_cleanse(k, sizeof *k);
}

static void next_nonce(struct record_keys *k, uint8_t nonce[AEAD_NONCE])
{
    uint64_t sequence = k->sequence++;
    memcpy(nonce, k->iv, AEAD_NONCE);
    for (int i = 11; i > 3; i--, sequence >>= 8)
        nonce[i] ^= (uint8_t)sequence;
}

size_t record_seal(struct record_keys *k, uint8_t *plain, size_t size, enum content_type type, uint8_t *out)
{
    uint8_t nonce[AEAD_NONCE], borrowed = plain[size];
    next_nonce(k, nonce);
    out[0] = CONTENT_APPLICATION_DATA;
    put_u16(out + 1, 0x0303);
    put_u16(out + 3, (uint32_t)(size + 1 + AEAD_TAG));
    plain[size] = (uint8_t)type;
    bool sealed = aead_seal(&k->aead, nonce, out, HEADER, plain, size + 1, out + HEADER);
    plain[size] = borrowed;
    return sealed ? size + RECORD_OVERHEAD : 0;
}

ssize_t record_open(struct record_keys *k, uint8_t *record, size_t size, uint8_t *type)
{
    uint8_t nonce[AEAD_NONCE], *body = record + HEADER;
    if (size < HEADER + 1 + AEAD_TAG)
        return -1;
    next_nonce(k, nonce);
    ssize_t n = (ssize_t)(size - HEADER - AEAD_TAG);
    if (!aead_open(&k->aead, nonce, record, HEADER, body, (size_t)n))
        return -1;
    while (n > 0 && body[n - 1] == 0) /* padding */
        n--;
    if (n == 0 || n - 1 > RECORD_PLAIN)
        return -1;
    *type = body[n - 1];
    return n - 1;
}
