/* HEADERS: requests on server tunnels, answers on client tunnels, trailers on both. */
#ifndef HBONE_H2_HEADERS_H
#define HBONE_H2_HEADERS_H

#include "state.h"

/* False when the tunnel ended over it. */
bool h2_headers(struct tunnel *t, const uint8_t *body, uint32_t size);
bool h2_continuation(struct tunnel *t, const uint8_t *body, uint32_t size);

#endif
