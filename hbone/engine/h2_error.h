/* HTTP/2 errors (RFC 9113 5.4), and what is charged for oddities. Functions return false when the tunnel ended. */
#ifndef HBONE_H2_ERROR_H
#define HBONE_H2_ERROR_H

#include "state.h"

/* A connection error. Always false. */
bool h2_error(struct tunnel *t, uint32_t code, const char *detail);
/* A stream error: RST_STREAM, and the flow on the stream (if any) ends. */
bool h2_stream_error(struct tunnel *t, uint32_t stream, uint32_t code);
/* Draws on the score for oddities that are harmless one by one. */
bool h2_glitch(struct tunnel *t, const char *detail);
/* The stream was never opened, so a frame for it breaks the protocol. */
bool h2_idle(const struct tunnel *t, uint32_t stream);

#endif
