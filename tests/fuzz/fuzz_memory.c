/* replaces: worker; wraps: dial handshake_keys malloc calloc realloc aligned_alloc strdup strndup */
/* An input of fuzz_frames.c, again and again: each time memory runs out one allocation later, for that one only and for
 * good. Whatever fails for want of memory, every token ends once, nothing is left, and what is sent is well-formed. */
#define RUN_ONLY
#include "fuzz_frames.c"

#include <openssl/crypto.h>

enum { STEP = 150 };

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
char *__real_strdup(const char *text);
char *__real_strndup(const char *text, size_t size);

void *__wrap_malloc(size_t size);
void *__wrap_malloc(size_t size)
{
    return shortage_strikes() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size)
{
    return shortage_strikes() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t size);
void *__wrap_realloc(void *p, size_t size)
{
    return shortage_strikes() ? NULL : __real_realloc(p, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return shortage_strikes() ? NULL : __real_aligned_alloc(alignment, size);
}

char *__wrap_strdup(const char *text);
char *__wrap_strdup(const char *text)
{
    return shortage_strikes() ? NULL : __real_strdup(text);
}

char *__wrap_strndup(const char *text, size_t size);
char *__wrap_strndup(const char *text, size_t size)
{
    return shortage_strikes() ? NULL : __real_strndup(text, size);
}

static void *openssl_malloc(size_t size, const char *file, int line)
{
    (void)file, (void)line;
    return __wrap_malloc(size);
}

static void *openssl_realloc(void *p, size_t size, const char *file, int line)
{
    (void)file, (void)line;
    return __wrap_realloc(p, size);
}

static void openssl_free(void *p, const char *file, int line)
{
    (void)file, (void)line;
    free(p);
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    require(CRYPTO_set_mem_functions(openssl_malloc, openssl_realloc, openssl_free) == 1);
    return 0;
}

/* The first hundreds one by one, later ones in longer and longer steps: an input has to be done with in seconds. */
static void sweep(const uint8_t *data, size_t size, unsigned long length)
{
    for (unsigned long first = 0;; first += 1 + first / STEP) {
        shortage.made = shortage.failed = 0;
        shortage.first = first;
        shortage.length = length;
        run_input(data, size);
        if (!shortage.failed)
            return;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    shortage.first = (unsigned long)-1;
    run_input(data, size); /* what is made once and kept */
    sweep(data, size, 1);
    sweep(data, size, (unsigned long)-1);
    return 0;
}
