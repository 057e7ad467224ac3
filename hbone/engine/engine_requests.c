/* What the owner asks of flows: verdicts, those to be kept, cuts. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "counted.h"
#include "engine.h"
#include "flow_table.h"
#include "registry.h"
#include "state.h"
#include "verdict.h"

static int post_to_flow(struct engine *e, uint64_t token, struct command *c, bool wake)
{
    unsigned index = token_worker(token);
    if (index >= e->n_workers) { /* not one of ours: stale */
        command_free(c);
        return 0;
    }
    c->token = token;
    mailbox_post(&e->workers[index], c, wake);
    return 0;
}

static void set_netns(struct engine *e, struct route *r, int netns)
{
    r->netns = registry_netns(e, netns);
    r->netns_gone = netns && !r->netns;
}

/* NULL without memory. */
static struct route *route_of_request(struct engine *e, const struct engine_tunnel_request *q)
{
    size_t sans_size = 0;
    for (size_t i = 0; i < q->n_sans; i++)
        sans_size += strlen(q->sans[i]) + 1;
    struct route *r = route_new(&q->destination, sans_size + q->block_size);
    if (!r)
        return NULL;
    char *p = r->bytes;
    for (size_t i = 0; i < q->n_sans; i++)
        p = stpcpy(p, q->sans[i]) + 1;
    if (q->block_size)
        memcpy(p, q->block, q->block_size);
    r->n_sans = q->n_sans;
    r->sans_size = sans_size;
    r->block_size = q->block_size;
    r->mark = q->mark;
    r->identity = q->identity ? registry_identity(e, q->identity) : NULL;
    set_netns(e, r, q->netns);
    return r;
}

int engine_connect_plain(struct engine *e, const struct engine_tunnel_request *q, const struct address *source)
{
    struct command *c = command_new(COMMAND_PLAIN);
    if (!c || !(c->route = route_of_request(e, q))) {
        free(c);
        return -ENOMEM;
    }
    if (source)
        c->source = *source;
    return post_to_flow(e, q->token, c, false);
}

int engine_connect_tunnel(struct engine *e, const struct engine_tunnel_request *q)
{
    struct command *c = command_new(COMMAND_TUNNEL);
    if (!c || !(c->route = route_of_request(e, q))) {
        free(c);
        return -ENOMEM;
    }
    return post_to_flow(e, q->token, c, false);
}

static int post_reason(struct engine *e, enum command_type type, uint64_t token, unsigned reason, unsigned status,
                       bool wake)
{
    struct command *c = command_new(type);
    if (!c)
        return -ENOMEM;
    c->reason = reason;
    c->status = status;
    return post_to_flow(e, token, c, wake);
}

int engine_refuse(struct engine *e, uint64_t token, unsigned reason, unsigned status)
{
    return post_reason(e, COMMAND_REFUSE, token, reason, status, false);
}

int engine_cut(struct engine *e, uint64_t token, unsigned reason)
{
    return post_reason(e, COMMAND_CUT, token, reason, 0, true);
}

void engine_flush(struct engine *e)
{
    for (unsigned i = 0; i < e->n_workers; i++)
        mailbox_wake(&e->workers[i]);
}

/* ---- kept verdicts */

static struct route *keep_route(struct engine *e, const struct engine_tunnel_request *q)
{
    struct route *r = route_of_request(e, q);
    if (r && ((q->identity && !r->identity) || r->netns_gone)) { /* gone meanwhile */
        route_free(r);
        r = NULL;
    }
    return r;
}

static char *copy_texts(const char *texts, unsigned n)
{
    const char *end = texts;
    for (unsigned i = 0; i < n; i++)
        end += strlen(end) + 1;
    char *copy = malloc((size_t)(end - texts) + 1);
    if (copy)
        memcpy(copy, texts, (size_t)(end - texts));
    return copy;
}

static void key_of(const struct engine_kept *k, struct verdict_key *key)
{
    struct field fields[HPACK_FIELDS], authority = {NULL, k->authority, 0, 0};
    const char *text = k->fields;
    if (k->kind != LISTENER_HBONE) {
        verdict_key_captured(key, k->kind, k->tag, &k->local, &k->peer);
        return;
    }
    key->size = 0;
    if (k->n_fields > HPACK_FIELDS)
        return;
    for (unsigned i = 0; i < k->n_fields; i++) {
        fields[i].name = text;
        fields[i].name_size = (uint32_t)strlen(text);
        fields[i].value = text += fields[i].name_size + 1;
        fields[i].value_size = (uint32_t)strlen(text);
        text += fields[i].value_size + 1;
    }
    authority.value_size = (uint32_t)strlen(k->authority);
    verdict_key_request(key, k->tag, &k->local, &k->peer, k->identity, &authority, fields, k->n_fields);
}

int engine_keep(struct engine *e, const struct engine_kept *k)
{
    struct verdict_key key;
    key_of(k, &key);
    if (!key.size || !e->config.max_verdicts)
        return -EINVAL;
    struct verdict *v = verdict_new(&key, k->number);
    if (!v)
        return -ENOMEM;
    v->tunnel = k->tunnel;
    v->source = k->source;
    v->n_varying = k->n_varying;
    int error = ENOMEM;
    if ((v->varying = copy_texts(k->varying, k->n_varying)))
        error = (v->route = keep_route(e, &k->request)) ? verdict_put(e, v, k->epoch) : ESTALE;
    if (error)
        verdict_unref(v);
    return -error;
}
