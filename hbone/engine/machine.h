/* The state machines of flows, tunnels and streams: tables that the code consults at every change, and from which
 * docs/engine.md is drawn. A change that is not in its table is not made (transition.h): what it would lead to is
 * unknown, so what it was asked of ends instead, and nothing else. */
#ifndef HBONE_MACHINE_H
#define HBONE_MACHINE_H

#include <stdbool.h>
#include <stddef.h>

/* ---- flow: what a token names */

#define FLOW_STATES(X)                                                                             \
    X(DECIDING, "waits for the owner's verdict")                                                   \
    X(CONNECTING, "onward TCP connect")                                                            \
    X(POOLED, "waits for a tunnel")                                                                \
    X(ASKED, "CONNECT is sent, no answer yet")                                                     \
    X(RELAYING, "bytes pass")                                                                      \
    X(DEAD, "Closed is told; freed at the end of the round")

#define FLOW_STARTS(X) X(DECIDING, "Accepted, or ConnectRequested")

#define FLOW_MOVES(X)                                                                              \
    X(DECIDING, CONNECTING, "connect_plain, or a stream goes into a tunnel")                       \
    X(DECIDING, POOLED, "connect_tunnel")                                                          \
    X(DECIDING, DEAD, "refuse, decision_timeout, client gone")                                     \
    X(CONNECTING, RELAYING, "connected; a stream is answered 200")                                 \
    X(CONNECTING, DEAD, "connect failed or too slow")                                              \
    X(POOLED, ASKED, "a tunnel has room")                                                          \
    X(POOLED, DEAD, "no tunnel to be had in time")                                                 \
    X(ASKED, RELAYING, "200")                                                                      \
    X(ASKED, POOLED, "not processed: again on another tunnel")                                     \
    X(ASKED, DEAD, "refused, or no answer in time")                                                \
    X(RELAYING, DEAD, "both ends done, reset, cut, stalled")

/* ---- tunnel: an mTLS HTTP/2 connection */

#define TUNNEL_STATES(X)                                                                           \
    X(CONNECTING, "TCP connect (client)")                                                          \
    X(HANDSHAKE, "TLS")                                                                            \
    X(OPEN, "HTTP/2; greeted once the peer's SETTINGS came")                                       \
    X(CLOSING, "flows have ended; reads and forgets until FIN or deadline")                        \
    X(DEAD, "closed; freed at the end of the round")

#define TUNNEL_STARTS(X)                                                                           \
    X(CONNECTING, "dialled for the pool")                                                          \
    X(HANDSHAKE, "accepted")

#define TUNNEL_MOVES(X)                                                                            \
    X(CONNECTING, HANDSHAKE, "connected")                                                          \
    X(CONNECTING, CLOSING, "connect failed")                                                       \
    X(HANDSHAKE, OPEN, "peer verified, keys taken over")                                           \
    X(HANDSHAKE, CLOSING, "not TLS, not believed, revoked, too slow")                              \
    X(OPEN, CLOSING, "last stream left, idle, failed, abused, revoked")                            \
    X(CLOSING, DEAD, "FIN came, deadline, or nothing to wait for")

/* A tunnel that leaves in order, beside its state (server: we leave). */
#define DRAIN_STATES(X)                                                                            \
    X(NO, "takes streams")                                                                         \
    X(ANNOUNCED, "GOAWAY 2^31-1 and PING are out; streams on their way are still taken")           \
    X(LAST, "GOAWAY with the last stream is out; ends with it")

#define DRAIN_STARTS(X) X(NO, "open")

#define DRAIN_MOVES(X)                                                                             \
    X(NO, ANNOUNCED, "drain")                                                                      \
    X(ANNOUNCED, LAST, "PING answered, or close_linger over")

/* ---- stream: the CONNECT stream of a flow */

#define STREAM_STATES(X)                                                                           \
    X(NONE, "the flow is on no tunnel")                                                            \
    X(OPEN, "both directions")                                                                     \
    X(SENT_END, "we sent END_STREAM")                                                              \
    X(GOT_END, "the peer sent END_STREAM, or reset")                                               \
    X(ENDED, "both")

#define STREAM_STARTS(X) X(NONE, "with its flow")

#define STREAM_MOVES(X)                                                                            \
    X(NONE, OPEN, "HEADERS sent or received")                                                      \
    X(OPEN, SENT_END, "the application's FIN")                                                     \
    X(OPEN, GOT_END, "END_STREAM, RST_STREAM")                                                     \
    X(OPEN, NONE, "reset, refused, retried, tunnel lost")                                          \
    X(SENT_END, ENDED, "END_STREAM, RST_STREAM")                                                   \
    X(SENT_END, NONE, "reset, tunnel lost")                                                        \
    X(GOT_END, ENDED, "the application's FIN")                                                     \
    X(GOT_END, NONE, "reset, refused, retried, tunnel lost")                                       \
    X(ENDED, NONE, "flow over")

#define MACHINES(X) X(FLOW, flow) X(TUNNEL, tunnel) X(DRAIN, drain) X(STREAM, stream)

/* enum flow_state { FLOW_DECIDING, ..., FLOW_STATE_COUNT }, and so on. */
#define X(name, text) FLOW_##name,
enum flow_state { FLOW_STATES(X) FLOW_STATE_COUNT };
#undef X
#define X(name, text) TUNNEL_##name,
enum tunnel_state { TUNNEL_STATES(X) TUNNEL_STATE_COUNT };
#undef X
#define X(name, text) DRAIN_##name,
enum drain_state { DRAIN_STATES(X) DRAIN_STATE_COUNT };
#undef X
#define X(name, text) STREAM_##name,
enum stream_state { STREAM_STATES(X) STREAM_STATE_COUNT };
#undef X

/* flow_move_allowed(from, to), and so on: one bit mask for each state; a row that is there twice does not compile. */
enum { MACHINE_STATES = 8 };
#define MOVE_KEY(from, to) ((unsigned)(from) * MACHINE_STATES + (unsigned)(to))
#define MOVE_FUNCTION(name, MOVES)                                                                 \
    static inline bool name##_move_allowed(enum name##_state from, enum name##_state to)           \
    {                                                                                              \
        switch (MOVE_KEY(from, to)) {                                                              \
            MOVES(X) return true;                                                                  \
        default:                                                                                   \
            return false;                                                                          \
        }                                                                                          \
    }
#define X(from, to, why) case MOVE_KEY(FLOW_##from, FLOW_##to):
MOVE_FUNCTION(flow, FLOW_MOVES)
#undef X
#define X(from, to, why) case MOVE_KEY(TUNNEL_##from, TUNNEL_##to):
MOVE_FUNCTION(tunnel, TUNNEL_MOVES)
#undef X
#define X(from, to, why) case MOVE_KEY(DRAIN_##from, DRAIN_##to):
MOVE_FUNCTION(drain, DRAIN_MOVES)
#undef X
#define X(from, to, why) case MOVE_KEY(STREAM_##from, STREAM_##to):
MOVE_FUNCTION(stream, STREAM_MOVES)
#undef X

/* For pages and for people. */
struct machine_state {
    const char *name, *text;
};
struct machine_move {
    const char *from, *to, *why; /* from NULL: a start */
};
struct machine {
    const char *name;
    const struct machine_state *states;
    const struct machine_move *moves;
    size_t n_states, n_moves;
};
enum { MACHINE_COUNT = 4 };
extern const struct machine machines[MACHINE_COUNT];

/* Names the change for a log: "a flow must not go from ASKED to DECIDING". */
void machine_forbids(char *text, size_t size, int machine, unsigned from, unsigned to);

#define X(upper, lower) MACHINE_##lower,
enum { MACHINES(X) };
#undef X

#endif
