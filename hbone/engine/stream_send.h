/* Plain socket to DATA frames. */
#ifndef HBONE_STREAM_SEND_H
#define HBONE_STREAM_SEND_H

#include "state.h"

/* One turn of plain socket -> DATA frames. */
void stream_pump(struct flow *f);
/* The peer's window for this stream changed by `delta`. */
void stream_window_changed(struct flow *f, int64_t delta);

#endif
