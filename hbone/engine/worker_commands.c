#include "worker_commands.h"

#include "acceptor.h"
#include "command.h"
#include "dial.h"
#include "event.h"
#include "flow_end.h"
#include "flow_table.h"
#include "flow_verdict.h"
#include "pool.h"
#include "tunnel.h"
#include "wire.h"

void worker_drain(struct worker *w, uint32_t tag, bool every_tag)
{
    struct link *next;
    acceptor_remove_tag(w, tag, every_tag);
    for (struct link *node = w->tunnels.next; node != &w->tunnels; node = next) {
        struct tunnel *t = container_of(node, struct tunnel, link);
        next = node->next;
        if (!t->client && (every_tag || t->tag == tag))
            tunnel_drain(t);
    }
}

static void check_revoked(struct worker *w)
{
    struct link *next;
    for (struct link *node = w->tunnels.next; node != &w->tunnels; node = next) {
        next = node->next;
        tunnel_check_revoked(container_of(node, struct tunnel, link));
    }
}

static void flow_command(struct worker *w, struct command *c)
{
    struct flow *f = flow_by_token(w, c->token);
    if (!f) {
        COUNT(w, stale_tokens);
        return;
    }
    switch (c->type) {
    case COMMAND_PLAIN:
        flow_connect_plain(f, c);
        break;
    case COMMAND_TUNNEL:
        flow_connect_tunnel(f, c);
        break;
    case COMMAND_REFUSE:
        flow_refuse(f, c->reason, c->status);
        break;
    default:
        flow_abort(f, c->reason, 0, H2_CANCEL);
        break;
    }
}

static void run_command(struct worker *w, struct command *c)
{
    switch (c->type) {
    case COMMAND_LISTEN:
        acceptor_add(w, c->acceptor);
        c->acceptor = NULL;
        break;
    case COMMAND_DRAIN:
        worker_drain(w, c->tag, c->every_tag);
        break;
    case COMMAND_ADOPT:
        acceptor_adopt(w, c->fd, c->listener, &c->peer);
        c->fd = -1;
        break;
    case COMMAND_FORGOTTEN:
        event_forgotten(w, c->token);
        break;
    default:
        flow_command(w, c);
        break;
    }
}

static void run_notices(struct worker *w, unsigned notices)
{
    if (notices & NOTICE_UNLISTEN)
        acceptor_remove_closed(w);
    if (notices & NOTICE_LEAVE)
        dial_leave_removed(w);
    if (notices & (NOTICE_LEAVE | NOTICE_RETIRE))
        pool_retire(w);
    if (notices & NOTICE_REVOKE)
        check_revoked(w);
    if (notices & NOTICE_STOP)
        w->stopping = true;
}

void worker_commands(struct worker *w)
{
    struct command *next;
    unsigned notices;
    for (struct command *c = mailbox_take(w, &notices); c; c = next) {
        next = c->next;
        run_command(w, c);
        command_free(c);
    }
    if (notices)
        run_notices(w, notices);
}
