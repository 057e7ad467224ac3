#include "machine.h"

#include <stdio.h>

#define STATE(name, text) {#name, text},
#define START(name, why) {NULL, #name, why},
#define CHANGE(from, to, why) {#from, #to, why},

#define X(upper, lower)                                                                            \
    static const struct machine_state lower##_states[] = {upper##_STATES(STATE)};                  \
    static const struct machine_move lower##_moves[] = {upper##_STARTS(START) upper##_MOVES(CHANGE)};
MACHINES(X)
#undef X

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

const struct machine machines[MACHINE_COUNT] = {
#define X(upper, lower)                                                                            \
    {#lower, lower##_states, lower##_moves, COUNT_OF(lower##_states), COUNT_OF(lower##_moves)},
    MACHINES(X)
#undef X
};

_Static_assert((int)FLOW_STATE_COUNT <= (int)MACHINE_STATES && (int)TUNNEL_STATE_COUNT <= (int)MACHINE_STATES &&
                   (int)STREAM_STATE_COUNT <= (int)MACHINE_STATES,
               "MOVE_KEY is too small");

void machine_forbids(char *text, size_t size, int machine, unsigned from, unsigned to)
{
    const struct machine *m = &machines[machine];
    snprintf(text, size, "a %s must not go from %s to %s", m->name, from < m->n_states ? m->states[from].name : "?",
             to < m->n_states ? m->states[to].name : "?");
}
