/* HTTP/2 as it comes in (RFC 9113), as far as CONNECT needs it: everything else is refused or ignored, and
 * nothing is free of charge. Functions return false when the tunnel ended over what they saw. */
#ifndef HBONE_H2_H
#define HBONE_H2_H

#include "state.h"
#include "tunnel.h"

/* Plaintext of one record. */
bool h2_input(struct tunnel *t, uint8_t *bytes, size_t size);

/* A connection error. Always false. */
bool h2_error(struct tunnel *t, uint32_t code, const char *detail);
/* A stream error: RST_STREAM, and the flow on the stream (if any) ends. */
bool h2_stream_error(struct tunnel *t, uint32_t stream, uint32_t code);
/* Draws on the score for oddities that are harmless one by one. */
bool h2_glitch(struct tunnel *t, const char *detail);
/* The stream was never opened, so a frame for it breaks the protocol. */
bool h2_idle(const struct tunnel *t, uint32_t stream);

/* ---- h2_control.c: whole control frames. */
bool h2_control(struct tunnel *t, const uint8_t *body, uint32_t size);
/* ---- h2_headers.c */
bool h2_headers(struct tunnel *t, const uint8_t *body, uint32_t size);
bool h2_continuation(struct tunnel *t, const uint8_t *body, uint32_t size);

#endif
