/* AES-GCM of Intel's Multi-Buffer library (libipsec-mb): a record costs one call, and wide vector instructions
 * (VAES) are used, which OpenSSL has from 3.1 on only. A loan, not a need: without it OpenSSL does the work. */
#ifndef HBONE_IPSEC_MB_H
#define HBONE_IPSEC_MB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ipsec_mb;
/* The schedule of one key. */
struct gcm_key_data;

/* NULL where the engine was built without the library's header, where the library is not installed or is another
 * version than the header's, and where the CPU lacks the instructions that make it worth while. */
struct ipsec_mb *ipsec_mb_load(void);
void ipsec_mb_free(struct ipsec_mb *mb);

/* `key` has 32 bytes when `wide`, else 16. NULL without memory. */
struct gcm_key_data *ipsec_mb_schedule(const struct ipsec_mb *mb, bool wide, const uint8_t *key);
void ipsec_mb_schedule_free(struct gcm_key_data *schedule);

/* One message: from `in` to `out` (which may be the same), its tag to `tag`. Opening does not compare the tag. */
void ipsec_mb_gcm(const struct ipsec_mb *mb, bool wide, bool sealing, const struct gcm_key_data *schedule,
                  const uint8_t nonce[12], const uint8_t *aad, size_t aad_size, const uint8_t *in, size_t size,
                  uint8_t *out, uint8_t tag[16]);

#endif
