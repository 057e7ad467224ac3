/* Socket addresses in one canonical form: IPv4-mapped IPv6 is IPv4. */
#ifndef HBONE_ADDRESS_H
#define HBONE_ADDRESS_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

struct address {
    uint8_t ip[16]; /* network order; the first 4 bytes for IPv4, the rest zero */
    uint32_t scope; /* of link-local IPv6 */
    uint16_t port;  /* host order */
    uint16_t family; /* AF_INET, AF_INET6, or AF_UNSPEC for "none" */
};

enum { ADDRESS_TEXT = INET6_ADDRSTRLEN };

bool address_parse(struct address *a, const char *ip, unsigned port);
socklen_t address_to_sockaddr(const struct address *a, struct sockaddr_storage *s);
/* AF_UNSPEC for families that are not IP. */
void address_from_sockaddr(struct address *a, const struct sockaddr_storage *s);
void address_of_socket(struct address *local, struct address *remote, int fd);
bool address_equal(const struct address *a, const struct address *b);
void address_text(const struct address *a, char text[ADDRESS_TEXT]);

#endif
