/* Record protection: what is sealed opens again; what is not sealed, or altered, or out of order, does not. Each side
 * by OpenSSL, or by ipsec-mb where there is one. */
#include <stdlib.h>
#include <string.h>

#include "buffer.h"
#include "record.h"

static void require(int holds)
{
    if (!holds)
        abort();
}

static const struct ipsec_mb *ipsec_mb(void)
{
    static struct ipsec_mb *mb;
    static bool tried;
    if (!tried)
        mb = ipsec_mb_load();
    tried = true;
    return mb;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct record_keys ours = {0}, theirs = {0};
    uint8_t secret[SECRET_LARGEST] = {7}, type = 0;
    if (size < 4)
        return 0;
    unsigned suite = data[0] & 1 ? SUITE_AES_128_GCM_SHA256 : SUITE_AES_256_GCM_SHA384;
    const struct ipsec_mb *sealer = data[1] & 4 ? ipsec_mb() : NULL, *opener = data[1] & 8 ? ipsec_mb() : NULL;
    unsigned updates = data[1] % 4, damage = data[2], kind = data[3] ? data[3] : 1;
    data += 4, size -= 4;
    size_t plain_size = size < RECORD_PLAIN ? size : RECORD_PLAIN;
    require(record_keys_init(&ours, sealer, suite, secret, true));
    require(record_keys_init(&theirs, opener, suite, secret, false));
    for (unsigned i = 0; i < updates; i++)
        require(record_keys_update(&ours, true) && record_keys_update(&theirs, false));
    uint8_t *plain = malloc(plain_size + 1), *sealed = malloc(plain_size + RECORD_OVERHEAD);
    memcpy(plain, data, plain_size);
    plain[plain_size] = 0xaa;
    size_t n = record_seal(&ours, plain, plain_size, kind, sealed);
    require(n == plain_size + RECORD_OVERHEAD && plain[plain_size] == 0xaa);
    if (damage) {
        sealed[damage % n] ^= (uint8_t)damage;
        require(record_open(&theirs, sealed, n, &type) == -1);
    } else {
        require(record_open(&theirs, sealed, n, &type) == (ssize_t)plain_size);
        require(type == kind && !memcmp(sealed + 5, data, plain_size));
    }
    if (size) { /* the input itself as a record */
        uint8_t *raw = malloc(size);
        memcpy(raw, data, size);
        record_open(&theirs, raw, size, &type);
        free(raw);
    }
    free(plain);
    free(sealed);
    record_keys_free(&ours);
    record_keys_free(&theirs);
    return 0;
}
