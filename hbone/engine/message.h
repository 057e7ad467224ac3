/* Header lists as HTTP messages: which are well-formed (RFC 9113 8.2, 8.3, 8.5). */
#ifndef HBONE_MESSAGE_H
#define HBONE_MESSAGE_H

#include "hpack.h"

enum message_verdict {
    MESSAGE_FINE,
    MESSAGE_NOT_CONNECT, /* well-formed, but not what is served here */
    MESSAGE_BAD_CONNECT, /* a CONNECT that breaks RFC 9113 8.5 */
    MESSAGE_MALFORMED,
};

struct request {
    struct field method, authority; /* without value: absent */
    unsigned first_field;           /* behind the pseudo-header fields */
};

/* Reads a request. `authority` points into the list. */
enum message_verdict message_request(const struct header_list *list, struct request *r);
/* Reads a response: its status (100-999), or 0 when malformed. */
unsigned message_status(const struct header_list *list);
bool message_trailers(const struct header_list *list);
/* Whether a field of our own may be sent. */
bool message_field_valid(const char *name, size_t name_size, const char *value, size_t value_size);

#endif
