/* Commands from the owner (and other workers) to one worker, carried by its mailbox. */
#ifndef HBONE_COMMAND_H
#define HBONE_COMMAND_H

#include "state.h"

enum command_type {
    COMMAND_PLAIN,
    COMMAND_TUNNEL,
    COMMAND_REFUSE,
    COMMAND_CUT,
    COMMAND_LISTEN,
    COMMAND_DRAIN,
    COMMAND_ADOPT, /* a connection another worker accepted */
    COMMAND_FORGOTTEN, /* kept verdicts up to epoch `token` are given no more: tell the owner */
};

/* What a worker is to look at after its commands. Bits of the mailbox, so that none is lost for want of memory. */
enum notice {
    NOTICE_UNLISTEN = 1, /* listeners were closed */
    NOTICE_LEAVE = 2,    /* a namespace was removed: do not stay in it */
    NOTICE_REVOKE = 4,   /* lists have changed: look at every tunnel */
    NOTICE_RETIRE = 8,   /* an identity was replaced: close its idle tunnels */
    NOTICE_STOP = 16,
};

struct command {
    struct command *next;
    enum command_type type;
    uint64_t token;
    unsigned reason, status;
    uint32_t tag;
    bool every_tag;
    int fd;
    struct listener *listener; /* counted: COMMAND_ADOPT */
    struct acceptor *acceptor; /* owned: COMMAND_LISTEN */
    struct route *route;       /* owned */
    struct address source;     /* AF_UNSPEC: none */
    struct address peer;       /* COMMAND_ADOPT */
};

void mailbox_init(struct mailbox *m);
/* Takes the command over. Without `wake` it waits for the next worker_wake or for the worker's next round. */
void mailbox_post(struct worker *w, struct command *c, bool wake);
void mailbox_wake(struct worker *w);
void mailbox_notice(struct worker *w, enum notice notice); /* and wakes it */
struct command *mailbox_take(struct worker *w, unsigned *notices);
/* Frees what nobody will take, and the worker's eventfd; later commands are freed at once. */
void mailbox_close(struct worker *w);
/* NULL without memory. */
struct command *command_new(enum command_type type);
void command_free(struct command *c);

#endif
