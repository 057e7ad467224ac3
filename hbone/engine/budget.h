/* What a peer may ask of us for free. Each budget is a bucket that leaks, or a count for a connection's life;
 * a peer that overdraws one is told ENHANCE_YOUR_CALM and loses its connection. */
#ifndef HBONE_BUDGET_H
#define HBONE_BUDGET_H

#include <stdbool.h>
#include <stdint.h>

struct bucket {
    uint64_t level; /* thousandths spent */
    uint64_t at;    /* milliseconds */
};

struct budgets {
    struct bucket resets, pings, settings, empty_data, tiny_data, late_data, key_updates, glitches;
    uint32_t resets_provoked, priorities;
    uint32_t streams_ended, streams_short; /* ended by the peer's RST; of them within a second */
    int64_t window_updates;                /* allowance left */
    uint32_t pings_queued;
};

struct limit {
    uint32_t burst, per_second;
};

/* Pours `amount` in; false when the bucket runs over. */
bool bucket_pour(struct bucket *b, struct limit limit, uint32_t amount, uint64_t now);

/* X(name, burst, refill per second, what draws on it) */
#define BUDGET_RATES(X)                                                                            \
    X(RESETS, 200, 20, "RST_STREAM of the peer")                                                   \
    X(PINGS, 50, 10, "PING")                                                                       \
    X(SETTINGS, 10, 10, "SETTINGS")                                                                \
    X(EMPTY_DATA, 50, 10, "DATA without bytes and without END_STREAM")                             \
    X(TINY_DATA, 100000, 100000, "DATA of less than TINY bytes: a million a second is no traffic") \
    X(LATE_DATA, 4096, 512, "DATA for streams that we ended")                                      \
    X(KEY_UPDATES, 16, 1, "TLS KeyUpdate")                                                         \
    X(GLITCHES, 100, 10, "what breaks no rule and serves nothing: GOAWAY again, empty records, unasked PING answers, interim answers")

/* X(name, number, what it bounds); for the life of a connection where nothing else is said */
#define BUDGET_COUNTS(X)                                                                           \
    X(SETTINGS_ENTRIES, 32, "entries of one SETTINGS frame")                                       \
    X(CONTINUATIONS, 4, "CONTINUATION frames of one header block")                                 \
    X(CONTINUED_BLOCK, 16 << 10, "bytes of a header block in several frames")                      \
    X(RESETS_PROVOKED, 100, "streams that we had to reset for the peer's errors")                  \
    X(PRIORITIES, 100, "PRIORITY frames")                                                          \
    X(PINGS_QUEUED, 50, "PING answers that wait for a blocked socket")                             \
    X(WINDOW_UPDATES_PER_DATA, 10, "WINDOW_UPDATE frames earned by each DATA frame that we send")  \
    X(WINDOW_UPDATES_BURST, 1000, "WINDOW_UPDATE frames before any DATA")                          \
    X(SHORT_STREAMS_AFTER, 200, "streams reset by the peer before half of them may be younger than a second") \
    X(TINY, 32, "bytes: a DATA frame with less is tiny")

#define X(name, burst, per_second, what) extern const struct limit LIMIT_##name;
BUDGET_RATES(X)
#undef X

#define X(name, number, what) name = number,
enum { BUDGET_COUNTS(X) };
#undef X

#endif
