#include "module_verdicts.h"

#include <errno.h>

#include "message.h"
#include "module_object.h"
#include "module_values.h"
#include "template.h"

PyObject *core_connect_plain(PyObject *self, PyObject *args)
{
    struct engine_tunnel_request q = {0};
    unsigned long long token;
    const char *ip, *source_ip;
    unsigned port;
    PyObject *headers;
    struct address source;
    uint8_t block[BLOCK_LARGEST];
    if (!PyArg_ParseTuple(args, "KsIizO!I", &token, &ip, &port, &q.netns, &source_ip, &PyTuple_Type, &headers, &q.mark) ||
        !address_from_text(&q.destination, ip, port) || (source_ip && !address_from_text(&source, source_ip, 0)) ||
        !encode_answer(block, &q.block_size, sizeof block, headers))
        return NULL;
    q.token = token;
    q.block = block;
    return none_or_error(engine_connect_plain(engine_of(self), &q, source_ip ? &source : NULL));
}

PyObject *core_connect_tunnel(PyObject *self, PyObject *args)
{
    struct engine_tunnel_request q = {0};
    unsigned long long token;
    const char *ip, *authority;
    Py_ssize_t authority_size;
    unsigned port;
    PyObject *sans, *headers;
    uint8_t block[BLOCK_LARGEST];
    if (!PyArg_ParseTuple(args, "KsIiIO!s#O!I", &token, &ip, &port, &q.netns, &q.identity, &PyTuple_Type, &sans,
                          &authority, &authority_size, &PyTuple_Type, &headers, &q.mark) ||
        !address_from_text(&q.destination, ip, port) ||
        !encode_request(block, &q.block_size, sizeof block, authority, authority_size, headers))
        return NULL;
    const char **texts = texts_from_tuple(sans);
    if (!texts)
        return NULL;
    q.token = token;
    q.block = block;
    q.sans = texts;
    q.n_sans = (size_t)PyTuple_GET_SIZE(sans);
    int error = engine_connect_tunnel(engine_of(self), &q);
    PyMem_Free(texts);
    return none_or_error(error);
}

PyObject *core_refuse(PyObject *self, PyObject *args)
{
    unsigned long long token;
    unsigned reason, status;
    if (!PyArg_ParseTuple(args, "KII", &token, &reason, &status))
        return NULL;
    if (status < 400 || status > 599)
        return PyErr_Format(PyExc_ValueError, "status %u does not refuse anything", status);
    return none_or_error(engine_refuse(engine_of(self), token, reason, status));
}

PyObject *core_cut(PyObject *self, PyObject *args)
{
    unsigned long long token;
    unsigned reason;
    if (!PyArg_ParseTuple(args, "KI", &token, &reason))
        return NULL;
    return none_or_error(engine_cut(engine_of(self), token, reason));
}

PyObject *core_flush(PyObject *self, PyObject *unused)
{
    (void)unused;
    engine_flush(engine_of(self));
    Py_RETURN_NONE;
}

/* ---- kept verdicts */

/* (number, epoch, kind, tag, local IP, local port, peer IP, peer identity, authority, fields, how many texts) */
static bool subject(PyObject *tuple, struct engine_kept *k)
{
    unsigned long long number, epoch;
    const char *local, *peer;
    unsigned port;
    int kind;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(tuple, "KKiIsIsyyy#I;whom a verdict is for", &number, &epoch, &kind, &k->tag, &local, &port,
                          &peer, &k->identity, &k->authority, &k->fields, &size, &k->n_fields) ||
        !address_from_text(&k->local, local, port) || !address_from_text(&k->peer, peer, 0))
        return false;
    if (kind < LISTENER_OUTBOUND || kind > LISTENER_HBONE) {
        PyErr_Format(PyExc_ValueError, "unknown kind of listener: %d", kind);
        return false;
    }
    k->number = number;
    k->epoch = epoch;
    k->kind = kind;
    return true;
}

/* 0, or why it was not kept; an exception without memory. */
static PyObject *kept_or_errno(int error)
{
    if (error == -ENOMEM)
        return PyErr_NoMemory();
    return PyLong_FromLong(-error);
}

PyObject *core_keep_plain(PyObject *self, PyObject *args)
{
    struct engine_kept k = {.varying = ""};
    PyObject *whom;
    const char *ip, *source_ip;
    unsigned port;
    PyObject *headers;
    uint8_t block[BLOCK_LARGEST];
    if (!PyArg_ParseTuple(args, "O!sIizO!I", &PyTuple_Type, &whom, &ip, &port, &k.request.netns, &source_ip,
                          &PyTuple_Type, &headers, &k.request.mark) ||
        !subject(whom, &k) || !address_from_text(&k.request.destination, ip, port) ||
        (source_ip && !address_from_text(&k.source, source_ip, 0)) ||
        !encode_answer(block, &k.request.block_size, sizeof block, headers))
        return NULL;
    k.request.block = block;
    return kept_or_errno(engine_keep(engine_of(self), &k));
}

static bool valid_varying(const char *name, const char *value)
{
    char plain[4096];
    size_t size = strlen(value);
    if (size > sizeof plain)
        return false;
    for (size_t i = 0; i < size; i++)
        plain[i] = template_varies(value + i, 1) ? 'x' : value[i];
    return message_field_valid(name, strlen(name), plain, size);
}

/* Every field may be sent, and all of them fit, whoever the client is. */
static bool check_varying(const struct engine_kept *k, uint8_t block[BLOCK_LARGEST])
{
    struct address longest = {.family = AF_INET6, .port = 65535};
    uint64_t random = 1;
    size_t size = k->request.block_size;
    const char *text = k->varying;
    memset(longest.ip, 0xff, sizeof longest.ip);
    for (unsigned i = 0; i < k->n_varying; i += 2) {
        const char *value = text + strlen(text) + 1;
        if (!valid_varying(text, value)) {
            PyErr_Format(PyExc_ValueError, "header cannot be sent: %s", text);
            return false;
        }
        text = value + strlen(value) + 1;
    }
    if (template_encode(block, &size, BLOCK_LARGEST, k->varying, k->n_varying, &longest, &random))
        return true;
    PyErr_SetString(PyExc_ValueError, "headers cannot be sent: more than 16000 bytes in all");
    return false;
}

PyObject *core_keep_tunnel(PyObject *self, PyObject *args)
{
    struct engine_kept k = {.tunnel = true};
    struct engine_tunnel_request *q = &k.request;
    PyObject *whom, *sans, *headers;
    const char *ip, *authority;
    Py_ssize_t authority_size, varying_size;
    unsigned port;
    uint8_t block[BLOCK_LARGEST];
    if (!PyArg_ParseTuple(args, "O!sIiIO!s#O!y#II", &PyTuple_Type, &whom, &ip, &port, &q->netns, &q->identity,
                          &PyTuple_Type, &sans, &authority, &authority_size, &PyTuple_Type, &headers, &k.varying,
                          &varying_size, &k.n_varying, &q->mark) ||
        !subject(whom, &k) || !address_from_text(&q->destination, ip, port) ||
        !encode_request(block, &q->block_size, sizeof block, authority, authority_size, headers) ||
        !check_varying(&k, block))
        return NULL;
    const char **texts = texts_from_tuple(sans);
    if (!texts)
        return NULL;
    q->block = block;
    q->sans = texts;
    q->n_sans = (size_t)PyTuple_GET_SIZE(sans);
    int error = engine_keep(engine_of(self), &k);
    PyMem_Free(texts);
    return kept_or_errno(error);
}

PyObject *core_forget(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(engine_forget(engine_of(self)));
}

PyObject *core_epoch(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(engine_epoch(engine_of(self)));
}
