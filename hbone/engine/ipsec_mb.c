#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "ipsec_mb.h"

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__has_include)
#if __has_include(<intel-ipsec-mb.h>)
#define WITH_IPSEC_MB
#endif
#endif

#ifdef WITH_IPSEC_MB

#include <dlfcn.h>
#include <intel-ipsec-mb.h>
#include <link.h>
#include <openssl/crypto.h>
#include <sys/mman.h>

#if IMB_VERSION_NUM >= IMB_VERSION(2, 0, 0)
#define LIBRARY "libIPSec_MB.so.2"
#else
#define LIBRARY "libIPSec_MB.so.1"
#endif

#define WORTH_WHILE (IMB_FEATURE_VAES | IMB_FEATURE_VPCLMULQDQ | IMB_FEATURE_AVX512_SKX)

enum { SCHEDULE_ALIGNMENT = 64 };

struct gcm {
    aes_gcm_pre_t prepare;
    aes_gcm_enc_dec_t seal, open;
};

struct ipsec_mb {
    void *library;
    struct gcm narrow, wide;
};

static int drop_code(struct dl_phdr_info *info, size_t size, void *name)
{
    (void)size;
    if (!strstr(info->dlpi_name, name))
        return 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        uintptr_t start = (info->dlpi_addr + part->p_vaddr) & ~(part->p_align - 1);
        if (part->p_type == PT_LOAD && !(part->p_flags & PF_W))
            madvise((void *)start, info->dlpi_addr + part->p_vaddr + part->p_memsz - start, MADV_DONTNEED);
    }
    return 1;
}

/* The library tries all its algorithms when it starts and so maps megabytes of code that nobody needs again: given
 * back, what is used comes again from the file. */
static void forget_trial(void)
{
    dl_iterate_phdr(drop_code, LIBRARY);
}

/* Which functions suit this CPU: the library fills a manager with them. They do not need it afterwards. */
static bool take_functions(struct ipsec_mb *mb)
{
    unsigned (*version)(void) = (unsigned (*)(void))dlsym(mb->library, "imb_get_version");
    IMB_MGR *(*make)(uint64_t) = (IMB_MGR * (*)(uint64_t)) dlsym(mb->library, "alloc_mb_mgr");
    void (*init)(IMB_MGR *, IMB_ARCH *) = (void (*)(IMB_MGR *, IMB_ARCH *))dlsym(mb->library, "init_mb_mgr_auto");
    void (*drop)(IMB_MGR *) = (void (*)(IMB_MGR *))dlsym(mb->library, "free_mb_mgr");
    /* another version may have another manager than our header says */
    if (!version || version() != IMB_VERSION_NUM || !make || !init || !drop)
        return false;
    IMB_MGR *manager = make(0);
    if (!manager)
        return false;
    init(manager, NULL);
    bool good = (manager->features & WORTH_WHILE) == WORTH_WHILE;
    if (good) {
        mb->narrow = (struct gcm){manager->gcm128_pre, manager->gcm128_enc, manager->gcm128_dec};
        mb->wide = (struct gcm){manager->gcm256_pre, manager->gcm256_enc, manager->gcm256_dec};
    }
    drop(manager);
    forget_trial();
    return good;
}

struct ipsec_mb *ipsec_mb_load(void)
{
    struct ipsec_mb *mb = calloc(1, sizeof *mb);
    if (!mb)
        return NULL;
    mb->library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (mb->library && take_functions(mb))
        return mb;
    ipsec_mb_free(mb);
    return NULL;
}

void ipsec_mb_free(struct ipsec_mb *mb)
{
    if (mb && mb->library)
        dlclose(mb->library);
    free(mb);
}

struct gcm_key_data *ipsec_mb_schedule(const struct ipsec_mb *mb, bool wide, const uint8_t *key)
{
    size_t size = (sizeof(struct gcm_key_data) + SCHEDULE_ALIGNMENT - 1) / SCHEDULE_ALIGNMENT * SCHEDULE_ALIGNMENT;
    struct gcm_key_data *schedule = aligned_alloc(SCHEDULE_ALIGNMENT, size);
    if (schedule)
        (wide ? mb->wide : mb->narrow).prepare(key, schedule);
    return schedule;
}

void ipsec_mb_schedule_free(struct gcm_key_data *schedule)
{
    if (schedule)
        OPENSSL_cleanse(schedule, sizeof *schedule);
    free(schedule);
}

void ipsec_mb_gcm(const struct ipsec_mb *mb, bool wide, bool sealing, const struct gcm_key_data *schedule,
                  const uint8_t nonce[12], const uint8_t *aad, size_t aad_size, const uint8_t *in, size_t size,
                  uint8_t *out, uint8_t tag[16])
{
    const struct gcm *gcm = wide ? &mb->wide : &mb->narrow;
    struct gcm_context_data scratch;
    (sealing ? gcm->seal : gcm->open)(schedule, &scratch, out, in, size, nonce, aad, aad_size, tag, 16);
}

#else

struct ipsec_mb *ipsec_mb_load(void)
{
    return NULL;
}

void ipsec_mb_free(struct ipsec_mb *mb)
{
    (void)mb;
}

struct gcm_key_data *ipsec_mb_schedule(const struct ipsec_mb *mb, bool wide, const uint8_t *key)
{
    (void)mb;
    (void)wide;
    (void)key;
    return NULL;
}

void ipsec_mb_schedule_free(struct gcm_key_data *schedule)
{
    (void)schedule;
}

void ipsec_mb_gcm(const struct ipsec_mb *mb, bool wide, bool sealing, const struct gcm_key_data *schedule,
                  const uint8_t nonce[12], const uint8_t *aad, size_t aad_size, const uint8_t *in, size_t size,
                  uint8_t *out, uint8_t tag[16])
{
    (void)mb;
    (void)wide;
    (void)sealing;
    (void)schedule;
    (void)nonce;
    (void)aad;
    (void)aad_size;
    (void)in;
    (void)size;
    (void)out;
    (void)tag;
    abort(); /* there is no schedule to come here with */
}

#endif
