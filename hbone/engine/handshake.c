#include "handshake.h"

#include <openssl/err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "peer_certificate.h"

enum { RECORDS_LARGEST = 2048, BYTES_LARGEST = 256 << 10 };

const char peer_revoked_detail[] = "a certificate of the peer's chain is revoked";

static const unsigned char ALPN[] = {2, 'h', '2'};

/* ---- callbacks */

static int hex(char c)
{
    return c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10;
}

static void on_secret(const SSL *ssl, const char *line)
{
    static const char *const labels[2] = {"CLIENT_TRAFFIC_SECRET_0 ", "SERVER_TRAFFIC_SECRET_0 "};
    struct handshake *h = SSL_get_app_data(ssl);
    for (int side = 0; side < 2; side++) {
        if (strncmp(line, labels[side], strlen(labels[side])) != 0)
            continue;
        const char *digits = strrchr(line, ' ') + 1;
        size_t size = strlen(digits) / 2;
        if (size > SECRET_LARGEST)
            return;
        for (size_t i = 0; i < size; i++)
            h->secrets[side][i] = (uint8_t)(hex(digits[2 * i]) << 4 | hex(digits[2 * i + 1]));
        h->secret_size = size;
    }
}

/* A client that offers no ALPN would not reach choose_protocol. */
static int on_client_hello(SSL *ssl, int *alert, void *argument)
{
    const unsigned char *extension;
    size_t size;
    (void)argument;
    if (SSL_client_hello_get0_ext(ssl, TLSEXT_TYPE_application_layer_protocol_negotiation, &extension, &size))
        return SSL_CLIENT_HELLO_SUCCESS;
    *alert = SSL_AD_NO_APPLICATION_PROTOCOL;
    return SSL_CLIENT_HELLO_ERROR;
}

static int choose_protocol(SSL *ssl, const unsigned char **out, unsigned char *out_size, const unsigned char *in,
                           unsigned in_size, void *argument)
{
    (void)ssl;
    (void)argument;
    int chosen = SSL_select_next_proto((unsigned char **)out, out_size, ALPN, sizeof ALPN, in, in_size);
    return chosen == OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_ALERT_FATAL;
}

static struct peer_expected expected(const struct handshake *h)
{
    return (struct peer_expected){h->client, h->identity, h->sans, h->n_sans};
}

/* No certificate of the verified chain is revoked; what is needed to judge it again is kept. */
static bool still_valid(struct handshake *h, X509_STORE_CTX *store)
{
    struct revocation *r = h->identity->revocation;
    if (!r)
        return true;
    peer_chain_free(h->peer_chain);
    h->peer_chain = peer_chain_new(r, X509_STORE_CTX_get0_chain(store));
    if (h->peer_chain && !peer_chain_revoked(h->peer_chain))
        return true;
    h->reason = h->peer_chain ? REASON_peer_cert_revoked : REASON_overload;
    snprintf(h->detail, sizeof h->detail, "%s", h->peer_chain ? peer_revoked_detail : "out of memory");
    X509_STORE_CTX_set_error(store, h->peer_chain ? X509_V_ERR_CERT_REVOKED : X509_V_ERR_OUT_OF_MEM);
    return false;
}

/* A sound certificate of somebody we do not want. OpenSSL has no code of its own for the alert certificate_unknown,
 * which the other proxies send: it stands for every code that is not in its list, as this one. */
enum { ANOTHERS_NAME = X509_V_ERR_PERMITTED_VIOLATION };

static int verify_peer(X509_STORE_CTX *store, void *argument)
{
    (void)argument;
    SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
    struct handshake *h = SSL_get_app_data(ssl);
    h->remembered = false;
    if (X509_verify_cert(store) <= 0) {
        int code = X509_STORE_CTX_get_error(store);
        h->reason = peer_chain_reason(code);
        snprintf(h->detail, sizeof h->detail, "%s", X509_verify_cert_error_string(code));
        if (code == X509_V_ERR_CERT_NOT_YET_VALID) /* RFC 8446 6.2: certificate_expired is for both */
            X509_STORE_CTX_set_error(store, X509_V_ERR_CERT_HAS_EXPIRED);
        return 0;
    }
    X509 *leaf = X509_STORE_CTX_get0_cert(store);
    struct peer_expected who = expected(h);
    free(h->peer_identity);
    h->reason = peer_certificate_check(&who, leaf, &h->peer_identity, h->detail, sizeof h->detail);
    if (h->reason == REASON_ok && !still_valid(h, store))
        return 0;
    if (h->reason == REASON_ok)
        return 1;
    X509_STORE_CTX_set_error(store, ANOTHERS_NAME);
    return 0;
}

static void prepare(SSL_CTX *ctx)
{
    SSL_CTX_set_keylog_callback(ctx, on_secret);
    SSL_CTX_set_cert_verify_callback(ctx, verify_peer, NULL);
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
}

void handshake_prepare(SSL_CTX *server, SSL_CTX *client)
{
    prepare(server);
    prepare(client);
    SSL_CTX_set_client_hello_cb(server, on_client_hello, NULL);
    SSL_CTX_set_alpn_select_cb(server, choose_protocol, NULL);
    SSL_CTX_set_alpn_protos(client, ALPN, sizeof ALPN);
}

/* ---- resumption */

static struct session_peer proved(const struct handshake *h)
{
    return (struct session_peer){h->peer_identity, h->peer_chain};
}

static void believe(struct handshake *h, const struct session_peer *peer)
{
    free(h->peer_identity);
    peer_chain_free(h->peer_chain);
    h->peer_identity = peer->identity;
    h->peer_chain = peer->chain;
    h->remembered = peer->identity != NULL;
}

static int keep_session(SSL *ssl, SSL_SESSION *session)
{
    struct handshake *h = SSL_get_app_data(ssl);
    struct session_peer peer = proved(h);
    struct sessions *s = h->identity->sessions;
    return h->client ? session_keep_dialled(s, session, &peer, &h->place) : session_keep_served(s, session, &peer);
}

/* The last one found is the one that OpenSSL uses: it looks no further. */
static SSL_SESSION *find_session(SSL *ssl, const unsigned char *id, int size, int *copy)
{
    struct handshake *h = SSL_get_app_data(ssl);
    struct session_peer peer = {0};
    SSL_SESSION *session = session_served(h->identity->sessions, id, (size_t)size, &peer);
    *copy = 0; /* the reference is its own */
    believe(h, &peer);
    return session;
}

void handshake_prepare_resumption(SSL_CTX *server, SSL_CTX *client)
{
    static const unsigned char context[] = "hbone";
    SSL_CTX_set_session_cache_mode(server, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_set_session_cache_mode(client, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_set_session_id_context(server, context, sizeof context - 1);
    SSL_CTX_set_num_tickets(server, 1);
    SSL_CTX_sess_set_new_cb(server, keep_session);
    SSL_CTX_sess_set_new_cb(client, keep_session);
    SSL_CTX_sess_set_get_cb(server, find_session);
}

/* Offers a session with somebody who is expected. */
static void offer_session(struct handshake *h)
{
    struct session_peer peer = {0};
    SSL_SESSION *session = session_dialled(h->identity->sessions, &h->place, &peer);
    struct peer_expected who = expected(h);
    if (session && peer_named(&who, peer.identity) && SSL_set_session(h->ssl, session))
        believe(h, &peer);
    else
        session_peer_free(&peer);
    SSL_SESSION_free(session);
}

void handshake_ticket(struct handshake *h, const uint8_t *record, size_t size)
{
    char nothing;
    ERR_clear_error();
    if (BIO_write(h->in, record, (int)size) == (int)size)
        (void)SSL_read(h->ssl, &nothing, 1); /* keep_session is called from here */
    ERR_clear_error();
}

static uint64_t count_records(const uint8_t *bytes, size_t size)
{
    enum { HEADER = 5 };
    uint64_t n = 0;
    while (size >= HEADER) {
        size_t record = HEADER + ((size_t)bytes[3] << 8 | bytes[4]);
        n++;
        if (record >= size)
            break;
        bytes += record;
        size -= record;
    }
    return n;
}

/* ---- one handshake */

struct handshake *handshake_new(struct identity *identity, bool client, const char *sans, size_t n_sans,
                                const struct session_place *place)
{
    struct handshake *h = calloc(1, sizeof *h);
    if (!h)
        return NULL;
    h->client = client;
    h->identity = identity_ref(identity);
    h->sans = sans;
    h->n_sans = n_sans;
    h->ssl = SSL_new(client ? identity->client : identity->server);
    h->in = BIO_new(BIO_s_mem());
    h->out = BIO_new(BIO_s_mem());
    if (!h->ssl || !h->in || !h->out) {
        BIO_free(h->in);
        BIO_free(h->out);
        handshake_free(h);
        return NULL;
    }
    BIO_set_mem_eof_return(h->in, -1);
    SSL_set_bio(h->ssl, h->in, h->out);
    if (!SSL_set_app_data(h->ssl, h)) { /* the callbacks could not do without */
        handshake_free(h);
        return NULL;
    }
    if (place)
        h->place = *place;
    if (client && place && identity->sessions)
        offer_session(h);
    if (client)
        SSL_set_connect_state(h->ssl);
    else
        SSL_set_accept_state(h->ssl);
    return h;
}

void handshake_free(struct handshake *h)
{
    if (!h)
        return;
    if (h->ssl && SSL_is_init_finished(h->ssl)) /* or it would take the session for a broken one */
        SSL_set_shutdown(h->ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
    SSL_free(h->ssl);
    identity_unref(h->identity);
    free(h->peer_identity);
    peer_chain_free(h->peer_chain);
    OPENSSL_cleanse(h->secrets, sizeof h->secrets);
    free(h);
}

/* Takes all that OpenSSL has noted. The peer is not to blame then, whatever else was said. */
static bool lacked_memory(void)
{
    bool lacked = false;
    for (unsigned long code; (code = ERR_get_error());)
        lacked = lacked || ERR_GET_REASON(code) == ERR_R_MALLOC_FAILURE;
    return lacked;
}

static enum handshake_state fail(struct handshake *h)
{
    if (h->client && h->identity->sessions)
        session_drop_dialled(h->identity->sessions, &h->place);
    unsigned long code = ERR_peek_error();
    const char *why = code ? ERR_reason_error_string(code) : NULL;
    if (lacked_memory()) {
        h->reason = REASON_overload;
        snprintf(h->detail, sizeof h->detail, "out of memory");
    } else if (h->reason == REASON_ok) {
        bool missing = ERR_GET_LIB(code) == ERR_LIB_SSL &&
                       ERR_GET_REASON(code) == SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE;
        h->reason = missing ? REASON_peer_cert_missing : REASON_tls_handshake_failed;
        snprintf(h->detail, sizeof h->detail, "%s", why ? why : "handshake failed");
    }
    ERR_clear_error();
    return HANDSHAKE_FAILED;
}

static bool negotiated_h2(const SSL *ssl)
{
    const unsigned char *protocol;
    unsigned size;
    SSL_get0_alpn_selected(ssl, &protocol, &size);
    return size == 2 && memcmp(protocol, "h2", 2) == 0;
}

enum handshake_state handshake_step(struct handshake *h, const uint8_t *record, size_t size)
{
    h->bytes += (uint32_t)size;
    if (++h->records > RECORDS_LARGEST || h->bytes > BYTES_LARGEST) {
        h->reason = REASON_peer_abuse;
        snprintf(h->detail, sizeof h->detail, "handshake too long");
        return HANDSHAKE_FAILED;
    }
    (void)BIO_reset(h->out);
    ERR_clear_error();
    if (size && BIO_write(h->in, record, (int)size) != (int)size)
        return fail(h);
    int status = SSL_do_handshake(h->ssl);
    if (status != 1)
        return SSL_get_error(h->ssl, status) == SSL_ERROR_WANT_READ ? HANDSHAKE_MORE : fail(h);
    if (!negotiated_h2(h->ssl)) {
        h->reason = REASON_tls_handshake_failed;
        snprintf(h->detail, sizeof h->detail, "the peer did not agree to h2 by ALPN");
        return HANDSHAKE_FAILED;
    }
    const uint8_t *out;
    size_t sent = handshake_output(h, &out);
    h->resumed = SSL_session_reused(h->ssl) == 1;
    h->tickets = h->client ? 0 : count_records(out, sent);
    if (h->peer_identity && (h->peer_chain || !h->identity->revocation) && h->remembered == h->resumed)
        return HANDSHAKE_DONE;
    h->reason = REASON_internal; /* neither a certificate nor a session has shown whom we talk to */
    snprintf(h->detail, sizeof h->detail, "nobody was proved");
    return HANDSHAKE_FAILED;
}

size_t handshake_output(struct handshake *h, const uint8_t **bytes)
{
    char *data = NULL;
    long size = BIO_get_mem_data(h->out, &data);
    *bytes = (const uint8_t *)data;
    return size > 0 ? (size_t)size : 0;
}

bool handshake_keys(struct handshake *h, const struct ipsec_mb *mb, struct record_keys *sealing,
                    struct record_keys *opening)
{
    unsigned suite = SSL_CIPHER_get_protocol_id(SSL_get_current_cipher(h->ssl));
    if (!h->secret_size)
        return false;
    bool good = record_keys_init(sealing, mb, suite, h->secrets[h->client ? 0 : 1], true) &&
                record_keys_init(opening, mb, suite, h->secrets[h->client ? 1 : 0], false);
    sealing->sequence = h->tickets;
    return good;
}
