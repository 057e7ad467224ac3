#include "module_registry.h"

#include "module_object.h"
#include "module_values.h"

PyObject *core_add_netns(PyObject *self, PyObject *args)
{
    int fd;
    return PyArg_ParseTuple(args, "i", &fd) ? handle_or_error(engine_add_netns(engine_of(self), fd)) : NULL;
}

PyObject *core_remove_netns(PyObject *self, PyObject *args)
{
    int netns;
    if (!PyArg_ParseTuple(args, "i", &netns))
        return NULL;
    engine_remove_netns(engine_of(self), netns);
    Py_RETURN_NONE;
}

PyObject *core_listen(PyObject *self, PyObject *args)
{
    int fd, kind, netns;
    unsigned tag, identity;
    if (!PyArg_ParseTuple(args, "iiiII", &fd, &kind, &netns, &tag, &identity))
        return NULL;
    if (kind < LISTENER_OUTBOUND || kind > LISTENER_HBONE)
        return PyErr_Format(PyExc_ValueError, "unknown kind of listener: %d", kind);
    return handle_or_error(engine_listen(engine_of(self), fd, kind, netns, tag, identity));
}

PyObject *core_unlisten(PyObject *self, PyObject *args)
{
    int listener;
    if (!PyArg_ParseTuple(args, "i", &listener))
        return NULL;
    engine_unlisten(engine_of(self), listener);
    Py_RETURN_NONE;
}

/* ---- identities */

PyObject *core_set_identity(PyObject *self, PyObject *args)
{
    unsigned identity;
    const char *chain, *key, *roots;
    Py_ssize_t chain_size, key_size, roots_size;
    PyObject *domains;
    char error[256];
    if (!PyArg_ParseTuple(args, "Iy#y#y#O!", &identity, &chain, &chain_size, &key, &key_size, &roots, &roots_size,
                          &PyTuple_Type, &domains))
        return NULL;
    const char **texts = texts_from_tuple(domains);
    if (!texts)
        return NULL;
    int status = engine_set_identity(engine_of(self), identity, chain, (size_t)chain_size, key, (size_t)key_size,
                                     roots, (size_t)roots_size, texts, (size_t)PyTuple_GET_SIZE(domains), error,
                                     sizeof error);
    PyMem_Free(texts);
    if (status == 0)
        Py_RETURN_NONE;
    return PyErr_Format(PyExc_ValueError, "identity %u cannot be used: %s", identity, error);
}

PyObject *core_set_crls(PyObject *self, PyObject *args)
{
    PyObject *files;
    char error[128];
    if (!PyArg_ParseTuple(args, "O!", &PyTuple_Type, &files))
        return NULL;
    size_t n = (size_t)PyTuple_GET_SIZE(files);
    struct crl_file *list = PyMem_New(struct crl_file, n + 1);
    if (!list)
        return PyErr_NoMemory();
    for (size_t i = 0; i < n; i++) {
        PyObject *file = PyTuple_GET_ITEM(files, (Py_ssize_t)i);
        if (!PyBytes_Check(file)) {
            PyMem_Free(list);
            return PyErr_Format(PyExc_TypeError, "revocation lists are bytes");
        }
        list[i] = (struct crl_file){PyBytes_AS_STRING(file), (size_t)PyBytes_GET_SIZE(file)};
    }
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = engine_set_crls(engine_of(self), list, n, error, sizeof error);
    Py_END_ALLOW_THREADS
    PyMem_Free(list);
    if (status == 0)
        Py_RETURN_NONE;
    return PyErr_Format(PyExc_ValueError, "revocation lists cannot be used: %s", error);
}

PyObject *core_drop_identity(PyObject *self, PyObject *args)
{
    unsigned identity;
    if (!PyArg_ParseTuple(args, "I", &identity))
        return NULL;
    engine_drop_identity(engine_of(self), identity);
    Py_RETURN_NONE;
}

/* ---- leaving */

PyObject *core_drain(PyObject *self, PyObject *args)
{
    unsigned tag;
    return PyArg_ParseTuple(args, "I", &tag) ? none_or_error(engine_drain(engine_of(self), tag)) : NULL;
}

PyObject *core_drain_all(PyObject *self, PyObject *unused)
{
    (void)unused;
    return none_or_error(engine_drain_all(engine_of(self)));
}
