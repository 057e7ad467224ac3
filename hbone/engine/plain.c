#include "plain.h"

#include <unistd.h>

#include "flow.h"
#include "socket.h"

bool plain_adopt(struct plain *p, int fd)
{
    p->connected = plain_connecting(p, fd);
    return p->connected;
}

bool plain_connecting(struct plain *p, int fd)
{
    if (!socket_watch(p->flow->worker->epoll, fd, &p->source))
        return false;
    p->source.fd = fd;
    return true;
}

void plain_close(struct plain *p, bool reset)
{
    struct flow *f = p->flow;
    if (f->stream.tunnel && p == flow_plain(f))
        f->stream.tunnel->buffered -= p->out.size;
    queue_clear(&p->out, &f->worker->buffers);
    if (p->source.fd < 0)
        return;
    if (reset)
        close_with_reset(p->source.fd);
    else
        close(p->source.fd);
    p->source.fd = -1;
}
