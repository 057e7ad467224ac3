/* Deadlines of flows. */
#ifndef HBONE_FLOW_TIME_H
#define HBONE_FLOW_TIME_H

#include "state.h"

void flow_on_timer(struct flow *f);

#endif
