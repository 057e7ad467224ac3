/* Counters of one worker. Only the worker writes; anybody may read. */
#ifndef HBONE_STATS_H
#define HBONE_STATS_H

#include <stdatomic.h>
#include <stdint.h>

#define STATS(X)                                                                                   \
    X(accepted)                                                                                    \
    X(accept_paused)                                                                               \
    X(shed_flows)                                                                                  \
    X(shed_tunnels)                                                                                \
    X(shed_handshakes)                                                                             \
    X(shed_memory)                                                                                 \
    X(flows_opened)                                                                                \
    X(flows_closed)                                                                                \
    X(tunnels_accepted)                                                                            \
    X(tunnels_dialled)                                                                             \
    X(tunnels_opened)                                                                              \
    X(tunnels_closed)                                                                              \
    X(tunnel_failures)                                                                             \
    X(tunnel_failures_reported)                                                                    \
    X(handshakes_resumed)                                                                          \
    X(handshakes_failed)                                                                           \
    X(revoked_inbound)                                                                             \
    X(revoked_outbound)                                                                            \
    X(pool_hits)                                                                                   \
    X(pool_retries)                                                                                \
    X(pool_idle_released)                                                                          \
    X(pool_retired)                                                                                \
    X(streams_refused)                                                                             \
    X(bad_requests)                                                                                \
    X(stale_tokens)                                                                                \
    X(verdict_hits)                                                                                \
    X(verdict_misses)                                                                              \
    X(netns_failures)                                                                              \
    X(records_in)                                                                                  \
    X(records_out)                                                                                 \
    X(keys_updated)                                                                                \
    X(pings_sent)                                                                                  \
    X(goaways_received)                                                                            \
    X(abuse_resets)                                                                                \
    X(abuse_short_streams)                                                                         \
    X(abuse_resets_provoked)                                                                       \
    X(abuse_pings)                                                                                 \
    X(abuse_settings)                                                                              \
    X(abuse_empty_data)                                                                            \
    X(abuse_tiny_data)                                                                             \
    X(abuse_late_data)                                                                             \
    X(abuse_window_updates)                                                                        \
    X(abuse_priority)                                                                              \
    X(abuse_continuation)                                                                          \
    X(abuse_headers)                                                                               \
    X(abuse_key_updates)                                                                           \
    X(abuse_handshake)                                                                             \
    X(abuse_control_queue)                                                                         \
    X(abuse_glitches)                                                                              \
    X(abuse_buffer)                                                                                \
    X(defects)                                                                                     \
    X(stalled_flows)                                                                               \
    X(loops)

struct stats {
#define X(name) _Atomic uint64_t name;
    STATS(X)
#undef X
};

static inline void stat_add(_Atomic uint64_t *stat, uint64_t n)
{
    atomic_store_explicit(stat, atomic_load_explicit(stat, memory_order_relaxed) + n, memory_order_relaxed);
}

static inline uint64_t stat_get(_Atomic uint64_t *stat)
{
    return atomic_load_explicit(stat, memory_order_relaxed);
}

#define COUNT(w, name) stat_add(&(w)->stats.name, 1)

#endif
