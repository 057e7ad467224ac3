/* Shared parts of the load generator: clock, sockets, the request preface, latency histogram, arguments.
 *
 * Every connection starts with an 8-byte preface that tells the server what to do:
 *   byte 0    mode: 'S' sink, 'C' copying sink, 'D' source, 'R' request-response, 'E' echo
 *   bytes 1-3 zero
 *   bytes 4-7 message size in bytes (big endian), used by 'R'
 */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/types.h>

enum { PREFACE = 8, CHUNK = 256 * 1024, BIG_READ = 1024 * 1024 };

/* Parsed "--name value" arguments. Sizes and counts are positive, times are seconds. */
struct options {
    struct sockaddr_storage address;
    socklen_t address_len;
    int conns;
    uint32_t size;
    double seconds;
    bool down;
    bool gated; /* say when everything is set up, start at a line of stdin, close when stdin ends */
    uint64_t mebibytes;
    uint32_t writes; /* bulk: bytes of a write; 0: sendfile at one end, nothing copied at the other */
    int listener;    /* serve: a listening socket that was inherited; -1: none */
};

/* Latencies in nanoseconds, log-linear: 64 steps per power of two, so the error is below 1.6 %. */
enum { HISTOGRAM_STEPS = 64, HISTOGRAM_SLOTS = HISTOGRAM_STEPS * 60 };
struct histogram {
    uint64_t count[HISTOGRAM_SLOTS];
    uint64_t total;
};
void histogram_add(struct histogram *h, uint64_t ns);
void histogram_clear(struct histogram *h);
double histogram_us(const struct histogram *h, double quantile);

uint64_t now_ns(void);
double self_cpu(void);
__attribute__((noreturn, format(printf, 1, 2))) void fail(const char *format, ...);

void gate_ready(const struct options *o);
void gate_close(const struct options *o);
bool gate_again(const struct options *o);
int dial(const struct options *o, bool nonblocking);
void set_nonblocking(int fd);
void send_all(int fd, const void *data, size_t length);
void receive_all(int fd, void *data, size_t length);
void preface(unsigned char out[PREFACE], char mode, uint32_t size);
void watch(int epoll, int fd, int op, uint32_t events, void *what);
int zero_file(void);
extern char scratch[BIG_READ];
extern const char zeros[CHUNK];

int serve(const struct options *o);
int run_bulk(const struct options *o);
int run_exchange(const struct options *o);
int run_connections(const struct options *o);
int run_dials(const struct options *o);
int run_idle(const struct options *o);
int run_check(const struct options *o);

#endif
