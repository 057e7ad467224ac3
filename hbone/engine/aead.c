#include "aead.h"

#include <openssl/crypto.h>
#include <string.h>

/* ---- keys */

static bool set_cipher_key(struct aead *a, const uint8_t *key, bool sealing)
{
    if (!a->cipher)
        a->cipher = EVP_CIPHER_CTX_new();
    const EVP_CIPHER *cipher = a->wide ? EVP_aes_256_gcm() : EVP_aes_128_gcm();
    return a->cipher && EVP_CipherInit_ex(a->cipher, cipher, NULL, key, NULL, sealing) == 1;
}

bool aead_set_key(struct aead *a, const struct ipsec_mb *mb, bool wide, const uint8_t *key, bool sealing)
{
    a->mb = mb;
    a->wide = wide;
    if (!mb)
        return set_cipher_key(a, key, sealing);
    void *schedule = ipsec_mb_schedule(mb, wide, key);
    if (!schedule)
        return false; /* what there was still works */
    ipsec_mb_schedule_free(a->schedule);
    a->schedule = schedule;
    return true;
}

void aead_free(struct aead *a)
{
    EVP_CIPHER_CTX_free(a->cipher);
    ipsec_mb_schedule_free(a->schedule);
    *a = (struct aead){0};
}

/* ---- messages */

bool aead_seal(struct aead *a, const uint8_t nonce[AEAD_NONCE], const uint8_t *aad, size_t aad_size,
               const uint8_t *text, size_t size, uint8_t *out)
{
    int n, body, rest;
    if (a->mb) {
        ipsec_mb_gcm(a->mb, a->wide, true, a->schedule, nonce, aad, aad_size, text, size, out, out + size);
        return true;
    }
    return EVP_EncryptInit_ex(a->cipher, NULL, NULL, NULL, nonce) == 1 &&
           EVP_EncryptUpdate(a->cipher, NULL, &n, aad, (int)aad_size) == 1 &&
           EVP_EncryptUpdate(a->cipher, out, &body, text, (int)size) == 1 &&
           EVP_EncryptFinal_ex(a->cipher, out + body, &rest) == 1 &&
           EVP_CIPHER_CTX_ctrl(a->cipher, EVP_CTRL_AEAD_GET_TAG, AEAD_TAG, out + size) == 1;
}

bool aead_open(struct aead *a, const uint8_t nonce[AEAD_NONCE], const uint8_t *aad, size_t aad_size, uint8_t *text,
               size_t size)
{
    int n, body, rest;
    uint8_t *tag = text + size, made[AEAD_TAG];
    if (a->mb) {
        ipsec_mb_gcm(a->mb, a->wide, false, a->schedule, nonce, aad, aad_size, text, size, text, made);
        return CRYPTO_memcmp(made, tag, AEAD_TAG) == 0;
    }
    return EVP_DecryptInit_ex(a->cipher, NULL, NULL, NULL, nonce) == 1 &&
           EVP_CIPHER_CTX_ctrl(a->cipher, EVP_CTRL_AEAD_SET_TAG, AEAD_TAG, tag) == 1 &&
           EVP_DecryptUpdate(a->cipher, NULL, &n, aad, (int)aad_size) == 1 &&
           EVP_DecryptUpdate(a->cipher, text, &body, text, (int)size) == 1 &&
           EVP_DecryptFinal_ex(a->cipher, text + body, &rest) == 1;
}

/* ---- a trial */

enum { TRIAL_LARGEST = 4099, AAD = 5 };

struct trial {
    struct aead sealing[2], opening[2]; /* ipsec-mb, OpenSSL */
    uint8_t nonce[AEAD_NONCE], aad[AAD];
    uint8_t text[TRIAL_LARGEST], sealed[2][TRIAL_LARGEST + AEAD_TAG];
};

static bool agrees_on(struct trial *t, size_t size)
{
    for (int i = 0; i < 2; i++)
        if (!aead_seal(&t->sealing[i], t->nonce, t->aad, AAD, t->text, size, t->sealed[i]))
            return false;
    if (memcmp(t->sealed[0], t->sealed[1], size + AEAD_TAG) != 0)
        return false;
    for (int i = 0; i < 2; i++)
        if (!aead_open(&t->opening[i], t->nonce, t->aad, AAD, t->sealed[i], size) ||
            memcmp(t->sealed[i], t->text, size) != 0)
            return false;
    if (!aead_seal(&t->sealing[1], t->nonce, t->aad, AAD, t->text, size, t->sealed[0]))
        return false;
    t->sealed[0][size / 2] ^= 1;
    return !aead_open(&t->opening[0], t->nonce, t->aad, AAD, t->sealed[0], size);
}

static bool agrees_with(struct trial *t, const struct ipsec_mb *mb, bool wide)
{
    static const size_t sizes[] = {1, 15, 16, 17, 64, 255, 256, 1023, TRIAL_LARGEST};
    uint8_t key[AEAD_KEY_LARGEST];
    bool good = true;
    for (size_t i = 0; i < sizeof key; i++)
        key[i] = (uint8_t)(7 * i + wide);
    for (int i = 0; i < 2; i++)
        good = good && aead_set_key(&t->sealing[i], i ? NULL : mb, wide, key, true) &&
               aead_set_key(&t->opening[i], i ? NULL : mb, wide, key, false);
    for (size_t i = 0; good && i < sizeof sizes / sizeof sizes[0]; i++) {
        t->nonce[i] = (uint8_t)(i + 1);
        good = agrees_on(t, sizes[i]);
    }
    for (int i = 0; i < 2; i++) {
        aead_free(&t->sealing[i]);
        aead_free(&t->opening[i]);
    }
    return good;
}

bool aead_agrees(const struct ipsec_mb *mb)
{
    struct trial t = {.aad = {23, 3, 3}};
    for (size_t i = 0; i < sizeof t.text; i++)
        t.text[i] = (uint8_t)(i * i);
    return agrees_with(&t, mb, true) && agrees_with(&t, mb, false);
}
