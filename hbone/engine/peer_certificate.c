#include "peer_certificate.h"

#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum reason peer_chain_reason(int code)
{
    switch (code) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
    case X509_V_ERR_CERT_NOT_YET_VALID:
        return REASON_peer_cert_expired;
    case X509_V_ERR_CERT_REVOKED:
        return REASON_peer_cert_revoked;
    case X509_V_ERR_OUT_OF_MEM:
        return REASON_overload;
    default:
        return REASON_peer_cert_invalid;
    }
}

static const char SCHEME[] = "spiffe://";

static bool segment_character(char c, bool domain)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '-' || c == '_' ||
           (!domain && c >= 'A' && c <= 'Z');
}

/* "." or ".." (SPIFFE-ID 2.2). */
static bool relative(const char *start, const char *end)
{
    return start[0] == '.' && (end - start == 1 || (end - start == 2 && start[1] == '.'));
}

/* The end of a non-empty run of segment characters, or NULL. */
static const char *segment(const char *p, const char *end, bool domain)
{
    const char *start = p;
    while (p < end && segment_character(*p, domain))
        p++;
    return p > start && (domain || !relative(start, p)) ? p : NULL;
}

static const char *literal(const char *p, const char *end, const char *text)
{
    size_t n = strlen(text);
    return p && (size_t)(end - p) >= n && memcmp(p, text, n) == 0 ? p + n : NULL;
}

size_t spiffe_trust_domain(const char *uri, size_t size)
{
    const char *end = uri + size, *domain, *domain_end, *p;
    if (size > IDENTITY_LARGEST || !(domain = literal(uri, end, SCHEME)))
        return 0;
    if (!(domain_end = segment(domain, end, true)))
        return 0;
    if (!(p = literal(domain_end, end, "/ns/")) || !(p = segment(p, end, false)))
        return 0;
    if (!(p = literal(p, end, "/sa/")) || !(p = segment(p, end, false)) || p != end)
        return 0;
    return (size_t)(domain_end - domain);
}

struct complaint {
    char *detail;
    size_t size;
};

static enum reason refuse(struct complaint to, enum reason reason, const char *detail)
{
    snprintf(to.detail, to.size, "%s", detail);
    return reason;
}

/* A copy of the only URI among the alternative names; NULL with a reason when there is none or several. */
static char *only_uri(struct complaint to, X509 *leaf, enum reason *reason)
{
    GENERAL_NAMES *names = X509_get_ext_d2i(leaf, NID_subject_alt_name, NULL, NULL);
    const ASN1_IA5STRING *uri = NULL;
    char *copy = NULL;
    int n = 0;
    for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
        if (name->type != GEN_URI)
            continue;
        uri = name->d.uniformResourceIdentifier;
        n++;
    }
    *reason = REASON_peer_cert_invalid;
    if (n != 1)
        refuse(to, *reason, n ? "the peer's certificate has several URI names" : "the peer's certificate has no URI name");
    else if (!spiffe_trust_domain((const char *)ASN1_STRING_get0_data(uri), (size_t)ASN1_STRING_length(uri)))
        refuse(to, *reason, "the peer's URI name is not a SPIFFE identity");
    else if ((copy = strndup((const char *)ASN1_STRING_get0_data(uri), (size_t)ASN1_STRING_length(uri))))
        *reason = REASON_ok;
    else
        *reason = refuse(to, REASON_overload, "out of memory");
    GENERAL_NAMES_free(names);
    return copy;
}

/* OpenSSL takes a leaf without extended key usage for one of every purpose; we do not. */
static enum reason check_purpose(struct complaint to, bool client, X509 *leaf)
{
    uint32_t wanted = client ? XKU_SSL_SERVER : XKU_SSL_CLIENT;
    if (!(X509_get_extension_flags(leaf) & EXFLAG_XKUSAGE) || !(X509_get_extended_key_usage(leaf) & wanted))
        return refuse(to, REASON_peer_cert_invalid, "the peer's certificate is not meant for this role");
    if (X509_get_extension_flags(leaf) & EXFLAG_CA)
        return refuse(to, REASON_peer_cert_invalid, "the peer's certificate is that of an authority");
    return REASON_ok;
}

bool peer_named(const struct peer_expected *who, const char *uri)
{
    const char *name = who->names;
    for (size_t i = 0; i < who->n_names; i++, name += strlen(name) + 1)
        if (strcmp(name, uri) == 0)
            return true;
    return false;
}

static enum reason check_name(struct complaint to, const struct peer_expected *who, const char *uri)
{
    const char *domain = uri + strlen(SCHEME);
    if (who->client)
        return peer_named(who, uri) ? REASON_ok : refuse(to, REASON_peer_san_mismatch, uri);
    if (!identity_trusts(who->identity, domain, spiffe_trust_domain(uri, strlen(uri))))
        return refuse(to, REASON_peer_trust_domain, uri);
    return REASON_ok;
}

enum reason peer_certificate_check(const struct peer_expected *who, X509 *leaf, char **uri, char *detail, size_t size)
{
    struct complaint to = {detail, size};
    enum reason reason = check_purpose(to, who->client, leaf);
    *uri = reason == REASON_ok ? only_uri(to, leaf, &reason) : NULL;
    return *uri ? check_name(to, who, *uri) : reason;
}
