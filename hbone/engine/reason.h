/* Codes for the closed list of reasons (hbone/reasons.py has the same slugs). A code is a position here. */
#ifndef HBONE_REASON_H
#define HBONE_REASON_H

#define REASONS(X)                                                                                 \
    X(ok)                                                                                          \
    X(policy_denied)                                                                               \
    X(policy_no_match)                                                                             \
    X(policy_pending)                                                                              \
    X(policy_unusable)                                                                             \
    X(policy_changed)                                                                              \
    X(unknown_source)                                                                              \
    X(workload_pending)                                                                            \
    X(no_healthy_upstream)                                                                         \
    X(unknown_service)                                                                             \
    X(unknown_port)                                                                                \
    X(illegal_port)                                                                                \
    X(waypoint_unresolved)                                                                         \
    X(network_unreachable)                                                                         \
    X(name_unresolved)                                                                             \
    X(app_tunnel_unsupported)                                                                      \
    X(route_changed)                                                                               \
    X(identity_unavailable)                                                                        \
    X(ip_mismatch)                                                                                 \
    X(bad_request)                                                                                 \
    X(connect_refused)                                                                             \
    X(connect_timeout)                                                                             \
    X(connect_unreachable)                                                                         \
    X(connect_failed)                                                                              \
    X(network_policy)                                                                              \
    X(tls_handshake_failed)                                                                        \
    X(tls_handshake_timeout)                                                                       \
    X(peer_cert_missing)                                                                           \
    X(peer_cert_invalid)                                                                           \
    X(peer_cert_expired)                                                                           \
    X(peer_san_mismatch)                                                                           \
    X(peer_trust_domain)                                                                           \
    X(peer_cert_revoked)                                                                           \
    X(peer_protocol)                                                                               \
    X(peer_abuse)                                                                                  \
    X(peer_refused)                                                                                \
    X(peer_reset)                                                                                  \
    X(peer_goaway)                                                                                 \
    X(peer_dead)                                                                                   \
    X(decision_timeout)                                                                            \
    X(stalled)                                                                                     \
    X(half_close_timeout)                                                                          \
    X(stream_limit)                                                                                \
    X(overload)                                                                                    \
    X(draining)                                                                                    \
    X(reset_by_app)                                                                                \
    X(truncated)                                                                                   \
    X(shutdown)                                                                                    \
    X(internal)

enum reason {
#define X(name) REASON_##name,
    REASONS(X)
#undef X
        REASON_COUNT
};

#endif
