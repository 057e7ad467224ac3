/* CONNECT streams on tunnels: on and off a tunnel, and their answer. */
#ifndef HBONE_STREAM_H
#define HBONE_STREAM_H

#include "transition.h"

/* False: it is on one already, a defect (transition.h). */
bool stream_attach(struct flow *f, struct tunnel *t, uint32_t id);
/* Takes the flow off its tunnel, if it is on one. */
void stream_detach(struct flow *f);
struct flow *stream_find(const struct tunnel *t, uint32_t id);

static inline bool stream_got_end(const struct stream *s)
{
    return s->state == STREAM_GOT_END || s->state == STREAM_ENDED;
}

static inline bool stream_sent_end(const struct stream *s)
{
    return s->state == STREAM_SENT_END || s->state == STREAM_ENDED;
}

/* The peer will say no more; idempotent. */
static inline void stream_note_end(struct stream *s)
{
    if (!stream_got_end(s))
        stream_move(s, s->state == STREAM_SENT_END ? STREAM_ENDED : STREAM_GOT_END);
}

/* We have said everything; idempotent. */
static inline void stream_note_sent_end(struct stream *s)
{
    if (!stream_sent_end(s))
        stream_move(s, s->state == STREAM_GOT_END ? STREAM_ENDED : STREAM_SENT_END);
}

void stream_answer_ok(struct flow *f);
/* HEADERS with END_STREAM, and the stream is over. */
void stream_answer_refused(struct flow *f, unsigned status);
/* RST_STREAM where there is a stream to reset, and the stream is over. */
void stream_reset(struct flow *f, uint32_t code);

#endif
