#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "dial.h"

#include <errno.h>
#include <netinet/in.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "counted.h"
#include "socket.h"

#ifndef IPV6_TRANSPARENT
#define IPV6_TRANSPARENT 75
#endif
#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

/* 0 or -errno. A worker that cannot come home stays, and knows it: sockets that belong elsewhere are not opened. */
static int come_home(struct worker *w)
{
    if (!w->inside)
        return 0;
    if (setns(w->home_netns, CLONE_NEWNET)) {
        int error = -errno;
        COUNT(w, netns_failures);
        return error;
    }
    netns_unref(w->inside);
    w->inside = NULL;
    return 0;
}

void dial_leave(struct worker *w)
{
    come_home(w);
}

void dial_leave_removed(struct worker *w)
{
    if (w->inside && atomic_load(&w->inside->removed))
        come_home(w);
}

/* The thread stays where it went: the next socket is often for the same pod. Nothing else that a worker does
 * depends on its namespace; sockets keep theirs. 0 or -errno. */
static int go_to(struct worker *w, struct netns *netns)
{
    if (netns == w->inside)
        return 0;
    if (!netns)
        return come_home(w);
    if (setns(netns->fd, CLONE_NEWNET)) {
        int error = -errno;
        COUNT(w, netns_failures);
        return error;
    }
    netns_unref(w->inside);
    w->inside = netns_ref(netns);
    return 0;
}

static int open_socket(struct worker *w, int family, struct netns *netns)
{
    int error = go_to(w, netns);
    if (error)
        return error;
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
    error = -errno;
    if (netns && atomic_load(&netns->removed))
        come_home(w); /* the command to leave may have been here before */
    return fd >= 0 ? fd : error;
}

/* The recipe for the client's address: transparent, so that it may be bound; tied to lo, so that the route of
 * captured traffic is taken rather than the local table's; marked, so that replies come back. */
static int take_source(int fd, const struct address *source, uint32_t mark)
{
    struct sockaddr_storage s;
    struct address any_port = *source;
    bool v4 = source->family == AF_INET;
    any_port.port = 0;
    socklen_t size = address_to_sockaddr(&any_port, &s);
    int error = set_int(fd, v4 ? SOL_IP : SOL_IPV6, v4 ? IP_TRANSPARENT : IPV6_TRANSPARENT, 1);
    if (!error)
        error = set_int(fd, SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1);
    if (!error && setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3))
        error = -errno;
    if (!error)
        error = set_int(fd, SOL_SOCKET, SO_MARK, (int)mark);
    if (!error && bind(fd, (struct sockaddr *)&s, size))
        error = -errno;
    return error;
}

int dial(struct worker *w, const struct address *destination, struct netns *netns, const struct address *source,
         uint32_t mark)
{
    struct sockaddr_storage s;
    socklen_t size = address_to_sockaddr(destination, &s);
    int error = 0, fd = open_socket(w, destination->family, netns);
    if (fd < 0)
        return fd;
    tune_socket(fd);
    /* a pod that calls itself keeps the kernel's choice: its own address from itself would loop */
    bool wanted = source && source->family != AF_UNSPEC;
    bool spoof = wanted && source->family == destination->family &&
                 memcmp(source->ip, destination->ip, sizeof source->ip) != 0;
    if (spoof)
        error = take_source(fd, source, mark);
    else if (mark && !wanted)
        error = set_int(fd, SOL_SOCKET, SO_MARK, (int)mark);
    if (!error && connect(fd, (struct sockaddr *)&s, size) && errno != EINPROGRESS)
        error = -errno;
    if (!error)
        return fd;
    close(fd);
    return error;
}
