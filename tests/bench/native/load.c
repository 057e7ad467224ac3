/* Load generator and server of the benchmarks. One JSON object per line on stdout; errors on stderr, status 1.
 *
 *   load serve  ADDR:PORT                                    sink, source, echo and request-response server
 *   load bulk   ADDR:PORT --conns N --seconds S up|down      bytes per second; every byte is accounted for
 *   load rr     ADDR:PORT --conns N --size B --seconds S     closed-loop request-response
 *   load conns  ADDR:PORT --conns N --size B --seconds S     connect, one round trip, close; N at once
 *   load dials  ADDR:PORT --size B --seconds S               the same one by one; latency is that of connect()
 *   load idle   ADDR:PORT --conns N                          open, one round trip each, hold until stdin ends
 *   load check  ADDR:PORT --conns N --mebibytes M            echo of a pattern, every byte compared
 *
 * `serve --listener FD` accepts from an inherited socket. `bulk --writes B up` writes B bytes at a time, and both ends
 * copy as applications do. With --gated, bulk, rr, conns and dials print {"ready": N} when they are set up, start when stdin has a line, and keep
 * their connections after the result until stdin ends; conns and dials close them, and start again at the next line. ADDR is an IPv4 address or an IPv6 address in brackets.
 */
#define _GNU_SOURCE
#include "common.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static void parse_address(struct options *o, const char *text) {
    char host[64] = {0};
    const char *colon = strrchr(text, ':');
    if (!colon || colon == text || (size_t)(colon - text) >= sizeof host)
        fail("not ADDR:PORT: %s", text);
    int port = atoi(colon + 1);
    struct sockaddr_in *v4 = (struct sockaddr_in *)&o->address;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&o->address;
    memcpy(host, text, (size_t)(colon - text));
    if (host[0] == '[' && host[strlen(host) - 1] == ']') {
        host[strlen(host) - 1] = 0;
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons((uint16_t)port);
        o->address_len = sizeof *v6;
        if (inet_pton(AF_INET6, host + 1, &v6->sin6_addr) == 1)
            return;
    } else {
        v4->sin_family = AF_INET;
        v4->sin_port = htons((uint16_t)port);
        o->address_len = sizeof *v4;
        if (inet_pton(AF_INET, host, &v4->sin_addr) == 1)
            return;
    }
    fail("not an address: %s", text);
}

static struct options parse(int argc, char **argv) {
    struct options o = {.conns = 1, .size = 64, .seconds = 2, .mebibytes = 1, .listener = -1};
    parse_address(&o, argv[2]);
    for (int i = 3; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(argv[i], "up") || !strcmp(argv[i], "down")) {
            o.down = argv[i][0] == 'd';
            continue;
        }
        if (!strcmp(argv[i], "--gated")) {
            o.gated = true;
            continue;
        }
        if (!strcmp(argv[i], "--conns"))
            o.conns = atoi(value);
        else if (!strcmp(argv[i], "--size"))
            o.size = (uint32_t)atoi(value);
        else if (!strcmp(argv[i], "--seconds"))
            o.seconds = atof(value);
        else if (!strcmp(argv[i], "--mebibytes"))
            o.mebibytes = (uint64_t)atoll(value);
        else if (!strcmp(argv[i], "--writes"))
            o.writes = (uint32_t)atoi(value);
        else if (!strcmp(argv[i], "--listener"))
            o.listener = atoi(value);
        else
            fail("unknown argument: %s", argv[i]);
        i++;
    }
    if (o.conns < 1 || o.size < 1 || o.size > CHUNK || o.writes > CHUNK || o.seconds <= 0)
        fail("conns, size and writes (up to %d) and seconds must be positive", CHUNK);
    return o;
}

static void raise_open_files(void) {
    struct rlimit limit = {1 << 18, 1 << 18};
    if (setrlimit(RLIMIT_NOFILE, &limit) == 0)
        return;
    getrlimit(RLIMIT_NOFILE, &limit); /* not allowed above the hard limit: take that */
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        int (*run)(const struct options *);
    } commands[] = {{"serve", serve},           {"bulk", run_bulk}, {"rr", run_exchange},
                    {"conns", run_connections}, {"dials", run_dials}, {"idle", run_idle}, {"check", run_check}};
    if (argc < 3)
        fail("usage: load serve|bulk|rr|conns|idle|check ADDR:PORT [options]; see the head of load.c");
    signal(SIGPIPE, SIG_IGN);
    raise_open_files();
    struct options o = parse(argc, argv);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(argv[1], commands[i].name))
            return commands[i].run(&o);
    fail("unknown command: %s", argv[1]);
}
