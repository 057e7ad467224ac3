#include "revocation.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ISSUER_BUCKETS = 64, DIGEST = 32, LISTS_LARGEST = 1024 };

/* Authorities of live chains. There are few, so every chain points at the same ones. */
struct issuer {
    struct issuer *chain;
    unsigned references;
    uint8_t digest[DIGEST];
    X509 *certificate;
    uint64_t judged; /* the generation of lists that `lists` was chosen from */
    X509_CRL **lists;
    size_t n_lists;
};

struct lists {
    X509_CRL **all;
    size_t n;
};

struct revocation {
    pthread_mutex_t lock;
    struct lists lists;
    uint64_t generation;
    struct issuer *issuers[ISSUER_BUCKETS];
};

struct chain_link {
    struct issuer *issuer;
    ASN1_INTEGER *serial;
};

struct peer_chain {
    atomic_uint references;
    struct revocation *revocation;
    int64_t verified, expiry;
    int n;
    struct chain_link links[];
};

struct revocation *revocation_new(void)
{
    struct revocation *r = calloc(1, sizeof *r);
    if (r)
        pthread_mutex_init(&r->lock, NULL);
    if (r)
        r->generation = 1;
    return r;
}

static void lists_free(struct lists *l)
{
    for (size_t i = 0; i < l->n; i++)
        X509_CRL_free(l->all[i]);
    free(l->all);
    *l = (struct lists){0};
}

void revocation_free(struct revocation *r)
{
    if (!r)
        return;
    lists_free(&r->lists);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

/* ---- reading lists */

static const char *unusable(const X509_CRL *crl)
{
    for (int i = 0; i < X509_CRL_get_ext_count(crl); i++) {
        X509_EXTENSION *extension = X509_CRL_get_ext(crl, i);
        int nid = OBJ_obj2nid(X509_EXTENSION_get_object(extension));
        if (nid == NID_delta_crl)
            return "a delta list says too little";
        if (X509_EXTENSION_get_critical(extension) && nid != NID_issuing_distribution_point)
            return "it has an unknown critical extension";
    }
    ISSUING_DIST_POINT *scope = X509_CRL_get_ext_d2i(crl, NID_issuing_distribution_point, NULL, NULL);
    bool partial = scope && (scope->indirectCRL > 0 || scope->onlysomereasons || scope->onlyattr > 0);
    ISSUING_DIST_POINT_free(scope);
    return partial ? "an indirect or partial list cannot be judged" : NULL;
}

/* Takes the list over. */
static const char *keep(struct lists *l, X509_CRL *crl)
{
    const char *why = l->n < LISTS_LARGEST ? unusable(crl) : "there are too many lists";
    X509_CRL **all = why ? NULL : realloc(l->all, (l->n + 1) * sizeof *all);
    if (!all) {
        X509_CRL_free(crl);
        return why ? why : "out of memory";
    }
    l->all = all;
    all[l->n++] = crl;
    return NULL;
}

static bool blank(const struct crl_file *f)
{
    for (size_t i = 0; i < f->size; i++)
        if (!strchr(" \t\r\n", f->bytes[i]) || !f->bytes[i])
            return false;
    return true;
}

static const char *read_der(struct lists *l, const struct crl_file *f)
{
    const unsigned char *p = (const unsigned char *)f->bytes;
    X509_CRL *crl = d2i_X509_CRL(NULL, &p, (long)f->size);
    return crl ? keep(l, crl) : "it is neither PEM nor DER";
}

static const char *read_pem(struct lists *l, const struct crl_file *f)
{
    BIO *bio = BIO_new_mem_buf(f->bytes, (int)f->size);
    const char *why = bio ? NULL : "out of memory";
    size_t before = l->n;
    X509_CRL *crl;
    ERR_clear_error();
    while (!why && (crl = PEM_read_bio_X509_CRL(bio, NULL, NULL, NULL)))
        why = keep(l, crl);
    unsigned long error = ERR_peek_last_error();
    if (!why && (l->n == before || ERR_GET_REASON(error) != PEM_R_NO_START_LINE))
        why = "its PEM data is broken";
    BIO_free(bio);
    return why;
}

static const char *read_file(struct lists *l, const struct crl_file *f)
{
    if (blank(f))
        return NULL;
    if (f->size > INT32_MAX)
        return "it is too large";
    return f->bytes[0] == 0x30 ? read_der(l, f) : read_pem(l, f);
}

bool revocation_set(struct revocation *r, const struct crl_file *files, size_t n, char *error, size_t error_size)
{
    struct lists fresh = {0};
    for (size_t i = 0; i < n; i++) {
        const char *why = read_file(&fresh, &files[i]);
        ERR_clear_error();
        if (!why)
            continue;
        snprintf(error, error_size, "%s", why);
        lists_free(&fresh);
        return false;
    }
    pthread_mutex_lock(&r->lock);
    struct lists old = r->lists;
    r->lists = fresh;
    r->generation++;
    pthread_mutex_unlock(&r->lock);
    lists_free(&old);
    return true;
}

void revocation_count(struct revocation *r, size_t *lists, size_t *stale)
{
    pthread_mutex_lock(&r->lock);
    *lists = r->lists.n;
    *stale = 0;
    for (size_t i = 0; i < r->lists.n; i++) {
        const ASN1_TIME *until = X509_CRL_get0_nextUpdate(r->lists.all[i]);
        *stale += until && X509_cmp_current_time(until) < 0;
    }
    pthread_mutex_unlock(&r->lock);
}

/* ---- issuers; the lock is held */

static struct issuer *issuer_get(struct revocation *r, X509 *certificate)
{
    uint8_t digest[EVP_MAX_MD_SIZE];
    if (!X509_digest(certificate, EVP_sha256(), digest, NULL))
        return NULL;
    struct issuer **bucket = &r->issuers[digest[0] % ISSUER_BUCKETS], *i = *bucket;
    while (i && memcmp(i->digest, digest, DIGEST) != 0)
        i = i->chain;
    if (!i) {
        if (!(i = calloc(1, sizeof *i)))
            return NULL;
        memcpy(i->digest, digest, DIGEST);
        X509_up_ref(certificate);
        i->certificate = certificate;
        i->chain = *bucket;
        *bucket = i;
    }
    i->references++;
    return i;
}

static void issuer_put(struct revocation *r, struct issuer *i)
{
    if (!i || --i->references)
        return;
    struct issuer **p = &r->issuers[i->digest[0] % ISSUER_BUCKETS];
    while (*p != i)
        p = &(*p)->chain;
    *p = i->chain;
    X509_free(i->certificate);
    free(i->lists);
    free(i);
}

static bool speaks_for(X509_CRL *crl, X509 *issuer)
{
    if (X509_NAME_cmp(X509_CRL_get_issuer(crl), X509_get_subject_name(issuer)) != 0)
        return false;
    EVP_PKEY *key = X509_get0_pubkey(issuer);
    bool good = key && X509_CRL_verify(crl, key) == 1;
    ERR_clear_error();
    return good;
}

/* Chooses the issuer's lists, once for each generation: a signature costs more than all the rest. */
static bool issuer_judge(struct revocation *r, struct issuer *i)
{
    if (i->judged == r->generation)
        return true;
    X509_CRL **lists = r->lists.n ? malloc(r->lists.n * sizeof *lists) : NULL;
    if (r->lists.n && !lists)
        return false;
    free(i->lists);
    i->lists = lists;
    i->n_lists = 0;
    for (size_t n = 0; n < r->lists.n; n++)
        if (speaks_for(r->lists.all[n], i->certificate))
            lists[i->n_lists++] = r->lists.all[n];
    i->judged = r->generation;
    return true;
}

static bool named(const struct chain_link *link)
{
    enum { REVOKED = 1 };
    X509_REVOKED *entry;
    for (size_t n = 0; n < link->issuer->n_lists; n++)
        if (X509_CRL_get0_by_serial(link->issuer->lists[n], &entry, link->serial) == REVOKED)
            return true;
    return false;
}

/* ---- chains */

static int64_t not_after(const X509 *certificate)
{
    struct tm tm;
    return ASN1_TIME_to_tm(X509_get0_notAfter(certificate), &tm) ? (int64_t)timegm(&tm) : 0;
}

struct peer_chain *peer_chain_ref(struct peer_chain *c)
{
    if (c)
        atomic_fetch_add(&c->references, 1);
    return c;
}

struct peer_chain *peer_chain_new(struct revocation *r, STACK_OF(X509) *verified)
{
    int n = sk_X509_num(verified);
    struct peer_chain *c = calloc(1, sizeof *c + (size_t)n * sizeof c->links[0]);
    if (!c)
        return NULL;
    atomic_init(&c->references, 1);
    c->revocation = r;
    c->verified = (int64_t)time(NULL);
    c->expiry = INT64_MAX;
    c->n = n;
    bool good = n > 0;
    pthread_mutex_lock(&r->lock);
    for (int i = 0; i < n; i++) {
        X509 *own = sk_X509_value(verified, i);
        int64_t until = not_after(own);
        c->links[i].issuer = issuer_get(r, sk_X509_value(verified, i + 1 < n ? i + 1 : i)); /* a root is its own */
        c->links[i].serial = ASN1_INTEGER_dup(X509_get0_serialNumber(own));
        c->expiry = until < c->expiry ? until : c->expiry;
        good = good && c->links[i].issuer && c->links[i].serial;
    }
    pthread_mutex_unlock(&r->lock);
    if (good)
        return c;
    peer_chain_free(c);
    return NULL;
}

void peer_chain_free(struct peer_chain *c)
{
    if (!c || atomic_fetch_sub(&c->references, 1) != 1)
        return;
    pthread_mutex_lock(&c->revocation->lock);
    for (int i = 0; i < c->n; i++) {
        issuer_put(c->revocation, c->links[i].issuer);
        ASN1_INTEGER_free(c->links[i].serial);
    }
    pthread_mutex_unlock(&c->revocation->lock);
    free(c);
}

bool peer_chain_revoked(struct peer_chain *c)
{
    struct revocation *r = c->revocation;
    bool revoked = false;
    pthread_mutex_lock(&r->lock);
    for (int i = 0; i < c->n && !revoked; i++) /* without memory to judge by, nobody is believed */
        revoked = !issuer_judge(r, c->links[i].issuer) || named(&c->links[i]);
    pthread_mutex_unlock(&r->lock);
    return revoked;
}

int64_t peer_chain_expiry(const struct peer_chain *c)
{
    return c->expiry;
}

int64_t peer_chain_verified(const struct peer_chain *c)
{
    return c->verified;
}
