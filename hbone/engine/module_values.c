#include "module_values.h"

#include <errno.h>

#include "hpack.h"
#include "message.h"

PyObject *none_or_error(int error)
{
    if (error >= 0)
        Py_RETURN_NONE;
    errno = -error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

PyObject *handle_or_error(int handle)
{
    return handle >= 0 ? PyLong_FromLong(handle) : none_or_error(handle);
}

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
