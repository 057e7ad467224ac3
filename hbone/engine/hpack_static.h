/* The static table of RFC 7541 appendix A. Index 1 is the first row. */
#ifndef HBONE_HPACK_STATIC_H
#define HBONE_HPACK_STATIC_H

#include <stdint.h>

enum { HPACK_STATIC = 61 };

static const struct {
    uint8_t name_size, value_size;
    const char *name, *value;
} hpack_static[HPACK_STATIC] = {
    {10, 0, ":authority", ""},
    {7, 3, ":method", "GET"},
    {7, 4, ":method", "POST"},
    {5, 1, ":path", "/"},
    {5, 11, ":path", "/index.html"},
    {7, 4, ":scheme", "http"},
    {7, 5, ":scheme", "https"},
    {7, 3, ":status", "200"},
    {7, 3, ":status", "204"},
    {7, 3, ":status", "206"},
    {7, 3, ":status", "304"},
    {7, 3, ":status", "400"},
    {7, 3, ":status", "404"},
    {7, 3, ":status", "500"},
    {14, 0, "accept-charset", ""},
    {15, 13, "accept-encoding", "gzip, deflate"},
    {15, 0, "accept-language", ""},
    {13, 0, "accept-ranges", ""},
    {6, 0, "accept", ""},
    {27, 0, "access-control-allow-origin", ""},
    {3, 0, "age", ""},
    {5, 0, "allow", ""},
    {13, 0, "authorization", ""},
    {13, 0, "cache-control", ""},
    {19, 0, "content-disposition", ""},
    {16, 0, "content-encoding", ""},
    {16, 0, "content-language", ""},
    {14, 0, "content-length", ""},
    {16, 0, "content-location", ""},
    {13, 0, "content-range", ""},
    {12, 0, "content-type", ""},
    {6, 0, "cookie", ""},
    {4, 0, "date", ""},
    {4, 0, "etag", ""},
    {6, 0, "expect", ""},
    {7, 0, "expires", ""},
    {4, 0, "from", ""},
    {4, 0, "host", ""},
    {8, 0, "if-match", ""},
    {17, 0, "if-modified-since", ""},
    {13, 0, "if-none-match", ""},
    {8, 0, "if-range", ""},
    {19, 0, "if-unmodified-since", ""},
    {13, 0, "last-modified", ""},
    {4, 0, "link", ""},
    {8, 0, "location", ""},
    {12, 0, "max-forwards", ""},
    {18, 0, "proxy-authenticate", ""},
    {19, 0, "proxy-authorization", ""},
    {5, 0, "range", ""},
    {7, 0, "referer", ""},
    {7, 0, "refresh", ""},
    {11, 0, "retry-after", ""},
    {6, 0, "server", ""},
    {10, 0, "set-cookie", ""},
    {25, 0, "strict-transport-security", ""},
    {17, 0, "transfer-encoding", ""},
    {10, 0, "user-agent", ""},
    {4, 0, "vary", ""},
    {3, 0, "via", ""},
    {16, 0, "www-authenticate", ""},
};

#endif
