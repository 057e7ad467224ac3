#include "address.h"

#include <arpa/inet.h>
#include <string.h>

static void canonicalise(struct address *a)
{
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
    if (a->family != AF_INET6 || memcmp(a->ip, mapped, sizeof mapped) != 0)
        return;
    memmove(a->ip, a->ip + 12, 4);
    memset(a->ip + 4, 0, 12);
    a->family = AF_INET;
    a->scope = 0;
}

bool address_parse(struct address *a, const char *ip, unsigned port)
{
    memset(a, 0, sizeof *a);
    if (port > 65535)
        return false;
    a->port = (uint16_t)port;
    a->family = strchr(ip, ':') ? AF_INET6 : AF_INET;
    if (inet_pton(a->family, ip, a->ip) != 1)
        return false;
    canonicalise(a);
    return true;
}

void address_from_sockaddr(struct address *a, const struct sockaddr_storage *s)
{
    memset(a, 0, sizeof *a);
    if (s->ss_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)s;
        a->family = AF_INET;
        a->port = ntohs(v4->sin_port);
        memcpy(a->ip, &v4->sin_addr, 4);
    } else if (s->ss_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)s;
        a->family = AF_INET6;
        a->port = ntohs(v6->sin6_port);
        a->scope = v6->sin6_scope_id;
        memcpy(a->ip, &v6->sin6_addr, 16);
        canonicalise(a);
    }
}

socklen_t address_to_sockaddr(const struct address *a, struct sockaddr_storage *s)
{
    memset(s, 0, sizeof *s);
    if (a->family == AF_INET) {
        struct sockaddr_in *v4 = (struct sockaddr_in *)s;
        v4->sin_family = AF_INET;
        v4->sin_port = htons(a->port);
        memcpy(&v4->sin_addr, a->ip, 4);
        return sizeof *v4;
    }
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)s;
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(a->port);
    v6->sin6_scope_id = a->scope;
    memcpy(&v6->sin6_addr, a->ip, 16);
    return sizeof *v6;
}

void address_of_socket(struct address *local, struct address *remote, int fd)
{
    struct sockaddr_storage s;
    socklen_t size = sizeof s;
    if (local) {
        memset(local, 0, sizeof *local);
        if (getsockname(fd, (struct sockaddr *)&s, &size) == 0)
            address_from_sockaddr(local, &s);
    }
    size = sizeof s;
    if (remote) {
        memset(remote, 0, sizeof *remote);
        if (getpeername(fd, (struct sockaddr *)&s, &size) == 0)
            address_from_sockaddr(remote, &s);
    }
}

bool address_equal(const struct address *a, const struct address *b)
{
    return a->family == b->family && a->port == b->port && a->scope == b->scope &&
           memcmp(a->ip, b->ip, sizeof a->ip) == 0;
}

void address_text(const struct address *a, char text[ADDRESS_TEXT])
{
    if (a->family == AF_UNSPEC || !inet_ntop(a->family, a->ip, text, ADDRESS_TEXT))
        text[0] = 0;
}
