/* What wakes a worker for its earliest deadline: a kernel timer that stays armed from round to round. */
#ifndef HBONE_ALARM_H
#define HBONE_ALARM_H

#include "state.h"

/* False with errno set. The worker's epoll is there. */
bool alarm_init(struct worker *w);
/* epoll_wait's argument before the worker sleeps: -1 where the alarm will wake it, or nothing has to. */
int alarm_before_sleep(struct worker *w);
void alarm_rang(struct worker *w);
void alarm_close(struct worker *w);

#endif
