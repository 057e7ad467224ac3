#include "module_events.h"

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
