/* Control frames of HTTP/2, whole ones. */
#ifndef HBONE_H2_CONTROL_H
#define HBONE_H2_CONTROL_H

#include "state.h"

/* False when the tunnel ended over it. */
bool h2_control(struct tunnel *t, const uint8_t *body, uint32_t size);

#endif
