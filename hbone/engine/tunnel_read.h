/* TLS records as they come in: the handshake's, then everything that the connection's keys protect. */
#ifndef HBONE_TUNNEL_READ_H
#define HBONE_TUNNEL_READ_H

#include "state.h"

/* Takes every whole record, opened in place; the bytes used. The tunnel may be over then. */
size_t tunnel_records(struct tunnel *t, uint8_t *bytes, size_t size);

#endif
