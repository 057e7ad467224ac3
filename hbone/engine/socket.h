/* Options, errors and the end of TCP sockets. */
#ifndef HBONE_SOCKET_H
#define HBONE_SOCKET_H

#include <stdbool.h>

#include "reason.h"

/* Edge-triggered, for everything. False with errno set. */
bool socket_watch(int epoll, int fd, void *source);
/* TCP_NODELAY and keepalive, as on every socket the engine owns. Accepted sockets have inherited them from the
 * listening one. */
void tune_socket(int fd);
/* 0 or -errno. */
int set_int(int fd, int level, int option, int value);
/* The error that epoll told of (SO_ERROR); 0: none. */
int socket_error(int fd);
void close_with_reset(int fd);
enum reason connect_reason(int error);

#endif
