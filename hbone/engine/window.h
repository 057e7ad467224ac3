/* How much credit a receive window gets, and when (RFC 9113 5.2): half of it at a time, more while it may grow. */
#ifndef HBONE_WINDOW_H
#define HBONE_WINDOW_H

#include <stdbool.h>
#include <stdint.h>

/* Octets for a WINDOW_UPDATE, 0 while less than half of `target` waits in `uncredited`. One that `grows` doubles, up to
 * `most`. */
static inline uint32_t window_credit(uint32_t *uncredited, uint32_t *target, uint32_t most, bool grows)
{
    uint32_t credit = *uncredited;
    if (credit < *target / 2)
        return 0;
    *uncredited = 0;
    if (grows && *target < most) {
        uint32_t grown = *target <= most / 2 ? 2 * *target : most;
        credit += grown - *target;
        *target = grown;
    }
    return credit;
}

#endif
