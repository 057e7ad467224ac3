#include "registry.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>

#include "command.h"
#include "counted.h"
#include "credentials.h"
#include "socket.h"

/* ---- tables; the lock is held */

static int table_add(struct table *t, void *row)
{
    void **rows = realloc(t->rows, (t->n + 1) * sizeof *rows);
    if (!rows)
        return -ENOMEM;
    t->rows = rows;
    rows[t->n++] = row;
    return (int)t->n; /* a handle is never used again */
}

static void *table_get(const struct table *t, int handle)
{
    return handle > 0 && (size_t)handle <= t->n ? t->rows[handle - 1] : NULL;
}

static void *table_take(struct table *t, int handle)
{
    void *row = table_get(t, handle);
    if (row)
        t->rows[handle - 1] = NULL;
    return row;
}

static int copy_fd(int fd)
{
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    return copy >= 0 ? copy : -errno;
}

static void notice_all(struct engine *e, enum notice notice)
{
    for (unsigned i = 0; i < e->n_workers; i++)
        mailbox_notice(&e->workers[i], notice);
}

int engine_add_netns(struct engine *e, int fd)
{
    struct netns *n = calloc(1, sizeof *n);
    int copy = n ? copy_fd(fd) : -ENOMEM;
    if (copy < 0) {
        free(n);
        return copy;
    }
    n->fd = copy;
    atomic_init(&n->references, 1);
    pthread_mutex_lock(&e->lock);
    int handle = e->stopped ? -ESHUTDOWN : table_add(&e->netns, n);
    pthread_mutex_unlock(&e->lock);
    if (handle < 0)
        netns_unref(n);
    return handle;
}

void engine_remove_netns(struct engine *e, int netns)
{
    pthread_mutex_lock(&e->lock);
    struct netns *n = table_take(&e->netns, netns);
    pthread_mutex_unlock(&e->lock);
    if (!n)
        return;
    atomic_store(&n->removed, true);
    notice_all(e, NOTICE_LEAVE);
    netns_unref(n);
    engine_forget(e);
}

struct netns *registry_netns(struct engine *e, int handle)
{
    pthread_mutex_lock(&e->lock);
    struct netns *n = netns_ref(table_get(&e->netns, handle));
    pthread_mutex_unlock(&e->lock);
    return n;
}

/* ---- listeners */

static void free_commands(struct command *list)
{
    struct command *next;
    for (; list; list = next) {
        next = list->next;
        command_free(list);
    }
}

/* One for each worker, or, without memory, NULL. */
static struct command *command_for_all(const struct engine *e, enum command_type type)
{
    struct command *list = NULL;
    for (unsigned i = 0; i < e->n_workers; i++) {
        struct command *c = command_new(type);
        if (!c) {
            free_commands(list);
            return NULL;
        }
        c->next = list;
        list = c;
    }
    return list;
}

static void post_all(struct engine *e, struct command *list)
{
    struct command *next;
    for (unsigned i = 0; list; i++, list = next) {
        next = list->next;
        mailbox_post(&e->workers[i], list, true);
    }
}

static struct listener *listener_new(int fd, enum listener_kind kind, uint32_t tag, uint32_t identity)
{
    struct listener *l = calloc(1, sizeof *l);
    int copy = l ? copy_fd(fd) : -ENOMEM;
    if (copy < 0) {
        free(l);
        errno = -copy;
        return NULL;
    }
    fcntl(copy, F_SETFL, fcntl(copy, F_GETFL) | O_NONBLOCK);
    atomic_init(&l->references, 1);
    tune_socket(copy);
    l->fd = copy;
    l->kind = kind;
    l->tag = tag;
    l->identity = identity;
    return l;
}

static struct command *command_listen(const struct engine *e, struct listener *l)
{
    struct command *list = command_for_all(e, COMMAND_LISTEN);
    for (struct command *c = list; c; c = c->next)
        if (!(c->acceptor = acceptor_new(l))) {
            free_commands(list);
            return NULL;
        }
    return list;
}

/* Its handle, or -errno. */
static int add_listener(struct engine *e, struct listener *l)
{
    struct command *list = command_listen(e, l);
    if (!list)
        return -ENOMEM;
    pthread_mutex_lock(&e->lock);
    int handle = e->stopped ? -ESHUTDOWN : table_add(&e->listeners, l);
    if (handle > 0)
        listener_ref(l); /* the table's */
    pthread_mutex_unlock(&e->lock);
    if (handle > 0)
        post_all(e, list);
    else
        free_commands(list);
    return handle;
}

int engine_listen(struct engine *e, int fd, enum listener_kind kind, int netns, uint32_t tag, uint32_t identity)
{
    struct netns *n = registry_netns(e, netns);
    if (netns && !n)
        return -ENOENT;
    struct listener *l = listener_new(fd, kind, tag, identity);
    if (!l) {
        netns_unref(n);
        return -errno;
    }
    l->netns = n;
    int handle = add_listener(e, l);
    listener_unref(l);
    return handle;
}

void engine_unlisten(struct engine *e, int listener)
{
    pthread_mutex_lock(&e->lock);
    struct listener *l = table_take(&e->listeners, listener);
    pthread_mutex_unlock(&e->lock);
    if (!l)
        return;
    atomic_store(&l->closed, true);
    notice_all(e, NOTICE_UNLISTEN);
    listener_unref(l);
}

static void close_listeners(struct engine *e, uint32_t tag, bool every_tag)
{
    pthread_mutex_lock(&e->lock);
    for (size_t i = 0; i < e->listeners.n; i++) {
        struct listener *l = e->listeners.rows[i];
        if (!l || !(every_tag || l->tag == tag))
            continue;
        atomic_store(&l->closed, true);
        e->listeners.rows[i] = NULL;
        listener_unref(l);
    }
    pthread_mutex_unlock(&e->lock);
}

static int drain(struct engine *e, uint32_t tag, bool every_tag)
{
    struct command *list = command_for_all(e, COMMAND_DRAIN);
    if (!list)
        return -ENOMEM;
    for (struct command *c = list; c; c = c->next) {
        c->tag = tag;
        c->every_tag = every_tag;
    }
    post_all(e, list);
    close_listeners(e, tag, every_tag);
    engine_forget(e);
    return 0;
}

int engine_drain(struct engine *e, uint32_t tag)
{
    return drain(e, tag, false);
}

int engine_drain_all(struct engine *e)
{
    return drain(e, 0, true);
}

/* ---- identities */

static struct identity **identity_place(struct engine *e, uint32_t id)
{
    for (size_t i = 0; i < e->n_identities; i++)
        if (e->identities[i] && e->identities[i]->id == id)
            return &e->identities[i];
    for (size_t i = 0; i < e->n_identities; i++)
        if (!e->identities[i])
            return &e->identities[i];
    struct identity **all = realloc(e->identities, (e->n_identities + 1) * sizeof *all);
    if (!all)
        return NULL;
    e->identities = all;
    all[e->n_identities] = NULL;
    return &all[e->n_identities++];
}

/* Tunnels that were dialled with it and carry nothing are closed. */
static void retire(struct engine *e, struct identity *old)
{
    if (!old)
        return;
    atomic_store(&old->replaced, true);
    notice_all(e, NOTICE_RETIRE);
    identity_unref(old);
}

int engine_set_identity(struct engine *e, uint32_t identity, const char *chain, size_t chain_size, const char *key,
                        size_t key_size, const char *roots, size_t roots_size, const char *const *trust_domains,
                        size_t n_trust_domains, char *error, size_t error_size)
{
    struct identity_material m = {
        .chain = chain,
        .key = key,
        .roots = roots,
        .chain_size = chain_size,
        .key_size = key_size,
        .roots_size = roots_size,
        .trust_domains = trust_domains,
        .n_trust_domains = n_trust_domains,
        .revocation = e->revocation,
        .max_sessions = e->config.max_sessions,
        .session_lifetime = (int64_t)e->config.session_lifetime,
    };
    struct identity *made = identity_new(identity, &m, error, error_size), *old = made;
    if (!made)
        return -1;
    pthread_mutex_lock(&e->lock);
    struct identity **place = e->stopped ? NULL : identity_place(e, identity);
    bool stopped = e->stopped;
    if (place) {
        old = *place;
        *place = made;
    }
    pthread_mutex_unlock(&e->lock);
    engine_forget(e); /* kept verdicts lead to tunnels of the old one */
    retire(e, old);
    if (place || stopped)
        return 0;
    snprintf(error, error_size, "out of memory");
    return -1;
}

int engine_set_crls(struct engine *e, const struct crl_file *files, size_t n, char *error, size_t error_size)
{
    if (!revocation_set(e->revocation, files, n, error, error_size))
        return -1;
    notice_all(e, NOTICE_REVOKE);
    return 0;
}

void engine_drop_identity(struct engine *e, uint32_t identity)
{
    struct identity *old = NULL;
    pthread_mutex_lock(&e->lock);
    for (size_t i = 0; i < e->n_identities; i++)
        if (e->identities[i] && e->identities[i]->id == identity) {
            old = e->identities[i];
            e->identities[i] = NULL;
        }
    pthread_mutex_unlock(&e->lock);
    engine_forget(e);
    retire(e, old);
}

struct identity *registry_identity(struct engine *e, uint32_t id)
{
    struct identity *found = NULL;
    pthread_mutex_lock(&e->lock);
    for (size_t i = 0; i < e->n_identities && !found; i++)
        if (e->identities[i] && e->identities[i]->id == id)
            found = identity_ref(e->identities[i]);
    pthread_mutex_unlock(&e->lock);
    return found;
}

void registry_drop(struct engine *e)
{
    for (size_t i = 0; i < e->listeners.n; i++)
        listener_unref(e->listeners.rows[i]);
    for (size_t i = 0; i < e->netns.n; i++)
        netns_unref(e->netns.rows[i]);
    for (size_t i = 0; i < e->n_identities; i++)
        identity_unref(e->identities[i]);
    free(e->listeners.rows);
    free(e->netns.rows);
    free(e->identities);
    e->listeners = e->netns = (struct table){0};
    e->identities = NULL;
    e->n_identities = 0;
}
