/* HTTP/2 as it comes in (RFC 9113), as far as CONNECT needs it: everything else is refused or ignored, and
 * nothing is free of charge. */
#ifndef HBONE_H2_H
#define HBONE_H2_H

#include "state.h"

/* Plaintext of one record. False when the tunnel ended over what it saw. */
bool h2_input(struct tunnel *t, uint8_t *bytes, size_t size);

#endif
