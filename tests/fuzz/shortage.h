/* Memory that runs out when a test says so: allocations made while `shortage.engine` is set are numbered, and fail from
 * the `first` one on, `length` of them. What the test itself needs is made while it is not set. */
#ifndef SHORTAGE_H
#define SHORTAGE_H

#include <stdbool.h>
#include <stddef.h>

static _Thread_local struct {
    bool engine;
    unsigned long made, first, length, failed;
} shortage = {.first = (unsigned long)-1};

/* Whether this allocation fails. */
static inline bool shortage_strikes(void)
{
    if (!shortage.engine)
        return false;
    unsigned long n = shortage.made++;
    bool strikes = n >= shortage.first && n - shortage.first < shortage.length;
    shortage.failed += strikes;
    return strikes;
}

/* The engine's turn, or the test's; what it was before. */
static inline bool shortage_engine(bool now)
{
    bool before = shortage.engine;
    shortage.engine = now;
    return before;
}

#endif
