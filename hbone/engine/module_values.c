#include "module_values.h"

#include "hpack.h"
#include "message.h"

/* ---- in */

static bool setting(PyObject *settings, const char *name, double unit, double least, double most, uint64_t *out)
{
    PyObject *value = PyDict_GetItemString(settings, name);
    double number = value ? PyFloat_AsDouble(value) : 0;
    if (!value) {
        PyErr_Format(PyExc_ValueError, "%s is missing", name);
        return false;
    }
    if (PyErr_Occurred())
        return false;
    if (!(number >= least && number <= most)) {
        PyErr_Format(PyExc_ValueError, "%s is out of range: %R", name, value);
        return false;
    }
    *out = (uint64_t)(number * unit);
    return true;
}

bool config_from_dict(struct engine_config *config, PyObject *settings)
{
#define X(name, unit, value, least, most)                                                          \
    if (!setting(settings, #name, unit, least, most, &config->name))                               \
        return false;
    ENGINE_CONFIG(X)
#undef X
    return true;
}

bool address_from_text(struct address *a, const char *ip, unsigned port)
{
    if (address_parse(a, ip, port))
        return true;
    PyErr_Format(PyExc_ValueError, "not an address: %s port %u", ip, port);
    return false;
}

const char **texts_from_tuple(PyObject *tuple)
{
    Py_ssize_t n = PyTuple_GET_SIZE(tuple);
    const char **texts = PyMem_New(const char *, (size_t)n + 1);
    if (!texts)
        return (const char **)PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < n; i++) {
        Py_ssize_t size;
        texts[i] = PyUnicode_AsUTF8AndSize(PyTuple_GET_ITEM(tuple, i), &size);
        if (texts[i] && (size_t)size == strlen(texts[i]))
            continue;
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "embedded null character");
        PyMem_Free(texts);
        return NULL;
    }
    return texts;
}

static bool refuse_header(const char *name)
{
    PyErr_Format(PyExc_ValueError, "header cannot be sent: %s", name);
    return false;
}

static bool encode_header(uint8_t *block, size_t *size, size_t room, PyObject *pair)
{
    const char *name, *value;
    Py_ssize_t name_size, value_size;
    if (!PyArg_ParseTuple(pair, "s#s#;a header is a pair of strings", &name, &name_size, &value, &value_size))
        return false;
    if (!message_field_valid(name, (size_t)name_size, value, (size_t)value_size))
        return refuse_header(name);
    return hpack_encode_field(block, size, room, name, (size_t)name_size, value, (size_t)value_size) ||
           refuse_header("more than 16000 bytes in all");
}

static bool encode_headers(uint8_t *block, size_t *size, size_t room, PyObject *headers)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(headers); i++) {
        PyObject *pair = PyTuple_GET_ITEM(headers, i);
        if (!PyTuple_Check(pair)) {
            PyErr_SetString(PyExc_TypeError, "a header is a pair of strings");
            return false;
        }
        if (!encode_header(block, size, room, pair))
            return false;
    }
    return true;
}

bool encode_answer(uint8_t *block, size_t *size, size_t room, PyObject *headers)
{
    *size = 0;
    if (PyTuple_GET_SIZE(headers))
        hpack_encode_status(block, size, room, 200);
    return encode_headers(block, size, room, headers);
}

bool encode_request(uint8_t *block, size_t *size, size_t room, const char *authority, Py_ssize_t authority_size,
                    PyObject *headers)
{
    *size = 0;
    if (!authority_size || !message_field_valid("authority", 9, authority, (size_t)authority_size) ||
        !hpack_encode_connect(block, size, room, authority, (size_t)authority_size))
        return refuse_header(":authority");
    return encode_headers(block, size, room, headers);
}

/* ---- out */

static PyObject *address_to_tuple(const struct address *a)
{
    char text[ADDRESS_TEXT];
    if (a->family == AF_UNSPEC)
        Py_RETURN_NONE;
    address_text(a, text);
    return Py_BuildValue("(si)", text, a->port);
}

static const char *next_text(const char *text)
{
    return text + strlen(text) + 1;
}

static PyObject *latin1(const char *text)
{
    return PyUnicode_DecodeLatin1(text, (Py_ssize_t)strlen(text), NULL);
}

/* Pairs of name and value; `n` texts. */
static PyObject *headers_to_tuple(const char *text, unsigned n)
{
    PyObject *tuple = PyTuple_New(n / 2);
    for (unsigned i = 0; i < n / 2 && tuple; i++) {
        const char *value = next_text(text);
        PyObject *pair = Py_BuildValue("(NN)", latin1(text), latin1(value));
        if (!pair)
            Py_CLEAR(tuple);
        else
            PyTuple_SET_ITEM(tuple, i, pair);
        text = next_text(value);
    }
    return tuple;
}

static double seconds(uint64_t nanoseconds)
{
    return (double)nanoseconds / 1e9;
}

static PyObject *accepted(const struct engine_event *e)
{
    return Py_BuildValue("(iKIiNNd)", e->type, (unsigned long long)e->token, e->tag, e->kind,
                         address_to_tuple(&e->peer), address_to_tuple(&e->local), seconds(e->at));
}

static PyObject *connect_requested(const struct engine_event *e)
{
    const char *identity = e->text, *method = next_text(identity), *authority = next_text(method);
    return Py_BuildValue("(iKIKNNNNNNd)", e->type, (unsigned long long)e->token, e->tag,
                         (unsigned long long)e->tunnel, address_to_tuple(&e->peer), address_to_tuple(&e->local),
                         latin1(identity), latin1(method), latin1(authority),
                         headers_to_tuple(next_text(authority), e->texts - 3), seconds(e->at));
}

static PyObject *established(const struct engine_event *e)
{
    PyObject *identity = e->text[0] ? latin1(e->text) : Py_NewRef(Py_None);
    return Py_BuildValue("(iKNNNN)", e->type, (unsigned long long)e->token, identity, address_to_tuple(&e->local),
                         address_to_tuple(&e->peer), headers_to_tuple(next_text(e->text), e->texts - 1));
}

static PyObject *closed(const struct engine_event *e)
{
    return Py_BuildValue("(iKiiiKKNd)", e->type, (unsigned long long)e->token, e->reason, e->status, e->error,
                         (unsigned long long)e->from_client, (unsigned long long)e->to_client,
                         PyBool_FromLong(e->established), seconds(e->at));
}

static PyObject *admitted(const struct engine_event *e)
{
    return Py_BuildValue("(iKKINdN)", e->type, (unsigned long long)e->token, (unsigned long long)e->verdict, e->tag,
                         address_to_tuple(&e->peer), seconds(e->at), PyBool_FromLong(e->established));
}

static PyObject *finished(const struct engine_event *e)
{
    return Py_BuildValue("(iKKINdiiiKKNd)", e->type, (unsigned long long)e->token, (unsigned long long)e->verdict,
                         e->tag, address_to_tuple(&e->peer), seconds(e->at), e->reason, e->status, e->error,
                         (unsigned long long)e->from_client, (unsigned long long)e->to_client,
                         PyBool_FromLong(e->established), seconds(e->ended));
}

static PyObject *forgotten(const struct engine_event *e)
{
    return Py_BuildValue("(iK)", e->type, (unsigned long long)e->verdict);
}

static PyObject *tunnel_failed(const struct engine_event *e)
{
    return Py_BuildValue("(iINNiN)", e->type, e->tag, address_to_tuple(&e->peer), PyBool_FromLong(e->inbound),
                         e->reason, latin1(e->text));
}

static PyObject *tunnel_opened(const struct engine_event *e)
{
    return Py_BuildValue("(iIKNNNN)", e->type, e->tag, (unsigned long long)e->tunnel, PyBool_FromLong(e->inbound),
                         address_to_tuple(&e->peer), address_to_tuple(&e->local), latin1(e->text));
}

static PyObject *defect(const struct engine_event *e)
{
    return Py_BuildValue("(iIN)", e->type, e->tag, latin1(e->text));
}

static PyObject *tunnel_closed(const struct engine_event *e)
{
    return Py_BuildValue("(iKi)", e->type, (unsigned long long)e->tunnel, e->reason);
}

PyObject *event_to_tuple(const struct engine_event *event)
{
    static PyObject *(*const convert[])(const struct engine_event *) = {
        [EVENT_ACCEPTED] = accepted,           [EVENT_CONNECT_REQUESTED] = connect_requested,
        [EVENT_ESTABLISHED] = established,     [EVENT_CLOSED] = closed,
        [EVENT_TUNNEL_FAILED] = tunnel_failed, [EVENT_TUNNEL_OPENED] = tunnel_opened,
        [EVENT_TUNNEL_CLOSED] = tunnel_closed, [EVENT_DEFECT] = defect,
        [EVENT_ADMITTED] = admitted,           [EVENT_FINISHED] = finished,
        [EVENT_FORGOTTEN] = forgotten,
    };
    return convert[event->type](event);
}
