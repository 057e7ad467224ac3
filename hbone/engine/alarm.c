#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "alarm.h"

#include <sys/timerfd.h>
#include <unistd.h>

#include "socket.h"

bool alarm_init(struct worker *w)
{
    w->alarm = (struct source){SOURCE_ALARM, timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)};
    w->alarm_at = UINT64_MAX;
    return w->alarm.fd >= 0 && socket_watch(w->epoll, w->alarm.fd, &w->alarm);
}

static bool set(struct worker *w, uint64_t when)
{
    struct itimerspec at = {.it_value = {(time_t)(when / 1000), (long)(when % 1000) * 1000000}};
    if (timerfd_settime(w->alarm.fd, TFD_TIMER_ABSTIME, &at, NULL))
        return false;
    w->alarm_at = when;
    return true;
}

/* A timeout of epoll_wait is a kernel timer started and cancelled around every sleep, a good part of what a small
 * message costs. This one is set only for what is earlier than it; a deadline that has been put off meanwhile costs
 * a round that finds nothing to do. */
int alarm_before_sleep(struct worker *w)
{
    int wait = timer_wait(&w->timers, w->now); /* the time of the round before: a newer one is not worth asking for */
    if (wait <= 0)
        return wait;
    uint64_t when = w->now + (uint64_t)wait;
    return when >= w->alarm_at || set(w, when) ? -1 : wait;
}

void alarm_rang(struct worker *w)
{
    w->alarm_at = UINT64_MAX;
}

void alarm_close(struct worker *w)
{
    if (w->alarm.fd >= 0)
        close(w->alarm.fd);
    w->alarm.fd = -1;
}
