/* Linked into an engine for tests (-Wl,--wrap=h2_control), so that a peer can have by PING what it never could:
 *
 *   "MOVE" machine state   that change of state is tried, on the tunnel it came by or on the tunnel's first stream
 *   "LAST"                 all but four of the tunnel's stream ids have been used */
#include <string.h>

#include "h2_control.h"
#include "pool_entry.h"
#include "transition.h"

bool __real_h2_control(struct tunnel *t, const uint8_t *body, uint32_t size);
bool __wrap_h2_control(struct tunnel *t, const uint8_t *body, uint32_t size);

static void try_move(struct tunnel *t, uint8_t machine, uint8_t to)
{
    struct flow *f = t->streams[0]; /* stream 1 */
    if (machine == MACHINE_tunnel)
        tunnel_move(t, to);
    else if (machine == MACHINE_drain)
        drain_move(t, to);
    else if (f && machine == MACHINE_flow)
        flow_move(f, to);
    else if (f && machine == MACHINE_stream)
        stream_move(&f->stream, to);
}

bool __wrap_h2_control(struct tunnel *t, const uint8_t *body, uint32_t size)
{
    if (t->in.type == FRAME_PING && !(t->in.flags & FLAG_ACK) && memcmp(body, "MOVE", 4) == 0)
        try_move(t, body[4], body[5]);
    if (t->in.type == FRAME_PING && memcmp(body, "LAST", 4) == 0)
        t->next_id = STREAM_ID_LARGEST - POOL_IDS_LEFT - 2 * 4;
    return __real_h2_control(t, body, size);
}
