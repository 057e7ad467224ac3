/* hbone._engine: the engine for CPython. Arguments in, tuples out; no decision is made here. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>

#include "budget.h"
#include "buffer.h"
#include "engine.h"
#include "machine.h"
#include "module_values.h"
#include "module_verdicts.h"

struct core {
    PyObject_HEAD
    struct engine *engine;
};

static struct engine *engine_of(PyObject *self)
{
    return ((struct core *)self)->engine;
}

static PyObject *none_or_error(int error)
{
    if (error >= 0)
        Py_RETURN_NONE;
    errno = -error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *handle_or_error(int handle)
{
    return handle >= 0 ? PyLong_FromLong(handle) : none_or_error(handle);
}

/* ---- life */

/* Starts the engine here, so that no object exists without one. */
static PyObject *core_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    struct engine_config config;
    PyObject *settings;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "O!", &PyDict_Type, &settings) || !config_from_dict(&config, settings))
        return NULL;
    struct core *core = (struct core *)type->tp_alloc(type, 0);
    if (!core)
        return NULL;
    core->engine = engine_start(&config);
    if (core->engine)
        return (PyObject *)core;
    PyErr_SetFromErrno(PyExc_OSError);
    Py_DECREF(core);
    return NULL;
}

static void core_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    struct engine *engine = engine_of(self);
    if (engine) {
        Py_BEGIN_ALLOW_THREADS
        engine_free(engine);
        Py_END_ALLOW_THREADS
    }
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *core_stop(PyObject *self, PyObject *unused)
{
    (void)unused;
    Py_BEGIN_ALLOW_THREADS
    engine_stop(engine_of(self));
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* ---- events and numbers */

static PyObject *core_take(PyObject *self, PyObject *args)
{
    Py_ssize_t limit;
    if (!PyArg_ParseTuple(args, "n", &limit))
        return NULL;
    struct engine_event *event = limit > 0 ? engine_take(engine_of(self), (size_t)limit) : NULL;
    PyObject *list = PyList_New(0);
    while (event) { /* all are freed, even if one does not convert */
        struct engine_event *next = event->next;
        PyObject *value = list ? event_to_tuple(event) : NULL;
        if (list && (!value || PyList_Append(list, value)))
            Py_CLEAR(list);
        Py_XDECREF(value);
        engine_event_free(event);
        event = next;
    }
    return list;
}

static PyObject *core_counters(PyObject *self, PyObject *unused)
{
    enum { BATCH = 1 << 16 };
    (void)unused;
    struct engine_counter *batch = PyMem_RawMalloc(BATCH * sizeof *batch);
    PyObject *list = batch ? PyList_New(0) : PyErr_NoMemory();
    size_t n = BATCH;
    while (list && n == BATCH) {
        Py_BEGIN_ALLOW_THREADS
        n = engine_counters(engine_of(self), batch, BATCH);
        Py_END_ALLOW_THREADS
        for (size_t i = 0; i < n && list; i++) {
            PyObject *row = Py_BuildValue("(KKK)", (unsigned long long)batch[i].token,
                                          (unsigned long long)batch[i].from_client,
                                          (unsigned long long)batch[i].to_client);
            if (!row || PyList_Append(list, row))
                Py_CLEAR(list);
            Py_XDECREF(row);
        }
    }
    PyMem_RawFree(batch);
    return list;
}

static PyObject *core_stats(PyObject *self, PyObject *unused)
{
    struct engine_stat stats[128];
    (void)unused;
    size_t n = engine_stats(engine_of(self), stats, sizeof stats / sizeof stats[0]);
    PyObject *dict = PyDict_New();
    for (size_t i = 0; i < n && dict; i++) {
        PyObject *value = PyLong_FromUnsignedLongLong(stats[i].value);
        if (!value || PyDict_SetItemString(dict, stats[i].name, value))
            Py_CLEAR(dict);
        Py_XDECREF(value);
    }
    return dict;
}

static PyObject *core_uses_ipsec_mb(PyObject *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(engine_uses_ipsec_mb(engine_of(self)));
}

static PyObject *core_event_fd(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromLong(engine_event_fd(engine_of(self)));
}

/* ---- registering */

static PyObject *core_add_netns(PyObject *self, PyObject *args)
{
    int fd;
    return PyArg_ParseTuple(args, "i", &fd) ? handle_or_error(engine_add_netns(engine_of(self), fd)) : NULL;
}

static PyObject *core_remove_netns(PyObject *self, PyObject *args)
{
    int netns;
    if (!PyArg_ParseTuple(args, "i", &netns))
        return NULL;
    engine_remove_netns(engine_of(self), netns);
    Py_RETURN_NONE;
}

static PyObject *core_listen(PyObject *self, PyObject *args)
{
    int fd, kind, netns;
    unsigned tag, identity;
    if (!PyArg_ParseTuple(args, "iiiII", &fd, &kind, &netns, &tag, &identity))
        return NULL;
    if (kind < LISTENER_OUTBOUND || kind > LISTENER_HBONE)
        return PyErr_Format(PyExc_ValueError, "unknown kind of listener: %d", kind);
    return handle_or_error(engine_listen(engine_of(self), fd, kind, netns, tag, identity));
}

static PyObject *core_unlisten(PyObject *self, PyObject *args)
{
    int listener;
    if (!PyArg_ParseTuple(args, "i", &listener))
        return NULL;
    engine_unlisten(engine_of(self), listener);
    Py_RETURN_NONE;
}

static PyObject *core_set_identity(PyObject *self, PyObject *args)
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

static PyObject *core_set_crls(PyObject *self, PyObject *args)
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

static PyObject *core_drop_identity(PyObject *self, PyObject *args)
{
    unsigned identity;
    if (!PyArg_ParseTuple(args, "I", &identity))
        return NULL;
    engine_drop_identity(engine_of(self), identity);
    Py_RETURN_NONE;
}

/* ---- verdicts */

static PyObject *core_connect_plain(PyObject *self, PyObject *args)
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

static PyObject *core_connect_tunnel(PyObject *self, PyObject *args)
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

static PyObject *core_refuse(PyObject *self, PyObject *args)
{
    unsigned long long token;
    unsigned reason, status;
    if (!PyArg_ParseTuple(args, "KII", &token, &reason, &status))
        return NULL;
    if (status < 400 || status > 599)
        return PyErr_Format(PyExc_ValueError, "status %u does not refuse anything", status);
    return none_or_error(engine_refuse(engine_of(self), token, reason, status));
}

static PyObject *core_cut(PyObject *self, PyObject *args)
{
    unsigned long long token;
    unsigned reason;
    if (!PyArg_ParseTuple(args, "KI", &token, &reason))
        return NULL;
    return none_or_error(engine_cut(engine_of(self), token, reason));
}

static PyObject *core_keep_plain(PyObject *self, PyObject *args)
{
    return keep_plain(engine_of(self), args);
}

static PyObject *core_keep_tunnel(PyObject *self, PyObject *args)
{
    return keep_tunnel(engine_of(self), args);
}

static PyObject *core_forget(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(engine_forget(engine_of(self)));
}

static PyObject *core_epoch(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(engine_epoch(engine_of(self)));
}

static PyObject *core_flush(PyObject *self, PyObject *unused)
{
    (void)unused;
    engine_flush(engine_of(self));
    Py_RETURN_NONE;
}

static PyObject *core_drain(PyObject *self, PyObject *args)
{
    unsigned tag;
    return PyArg_ParseTuple(args, "I", &tag) ? none_or_error(engine_drain(engine_of(self), tag)) : NULL;
}

static PyObject *core_drain_all(PyObject *self, PyObject *unused)
{
    (void)unused;
    return none_or_error(engine_drain_all(engine_of(self)));
}

/* ---- the type and the module */

static PyMethodDef core_methods[] = {
    {"take", core_take, METH_VARARGS, NULL},
    {"add_netns", core_add_netns, METH_VARARGS, NULL},
    {"remove_netns", core_remove_netns, METH_VARARGS, NULL},
    {"listen", core_listen, METH_VARARGS, NULL},
    {"unlisten", core_unlisten, METH_VARARGS, NULL},
    {"set_identity", core_set_identity, METH_VARARGS, NULL},
    {"set_crls", core_set_crls, METH_VARARGS, NULL},
    {"drop_identity", core_drop_identity, METH_VARARGS, NULL},
    {"connect_plain", core_connect_plain, METH_VARARGS, NULL},
    {"connect_tunnel", core_connect_tunnel, METH_VARARGS, NULL},
    {"refuse", core_refuse, METH_VARARGS, NULL},
    {"keep_plain", core_keep_plain, METH_VARARGS, NULL},
    {"keep_tunnel", core_keep_tunnel, METH_VARARGS, NULL},
    {"forget", core_forget, METH_NOARGS, NULL},
    {"epoch", core_epoch, METH_NOARGS, NULL},
    {"cut", core_cut, METH_VARARGS, NULL},
    {"flush", core_flush, METH_NOARGS, NULL},
    {"drain", core_drain, METH_VARARGS, NULL},
    {"drain_all", core_drain_all, METH_NOARGS, NULL},
    {"counters", core_counters, METH_NOARGS, NULL},
    {"stats", core_stats, METH_NOARGS, NULL},
    {"stop", core_stop, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef core_attributes[] = {
    {"uses_ipsec_mb", core_uses_ipsec_mb, NULL, "Whether ipsec-mb, not OpenSSL, protects TLS records.", NULL},
    {"event_fd", core_event_fd, NULL, "Readable while events wait.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot core_slots[] = {
    {Py_tp_doc, "The byte engine; see hbone.engine.Engine."},
    {Py_tp_new, core_new},
    {Py_tp_dealloc, core_dealloc},
    {Py_tp_methods, core_methods},
    {Py_tp_getset, core_attributes},
    {0, NULL},
};

static PyType_Spec core_spec = {
    .name = "hbone._engine.Core",
    .basicsize = sizeof(struct core),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = core_slots,
};

/* Appends a row made by Py_BuildValue; false with an exception. */
static bool append(PyObject *list, PyObject *row)
{
    bool good = list && row && PyList_Append(list, row) == 0;
    Py_XDECREF(row);
    return good;
}

/* ((name, ((state, text), ...), ((from or None, to, why), ...)), ...) */
static PyObject *machine_rows(void)
{
    PyObject *all = PyList_New(0);
    bool good = all != NULL;
    for (int i = 0; i < MACHINE_COUNT && good; i++) {
        const struct machine *m = &machines[i];
        PyObject *states = PyList_New(0), *moves = PyList_New(0);
        for (size_t n = 0; n < m->n_states && good; n++)
            good = append(states, Py_BuildValue("(ss)", m->states[n].name, m->states[n].text));
        for (size_t n = 0; n < m->n_moves && good; n++)
            good = append(moves, Py_BuildValue("(zss)", m->moves[n].from, m->moves[n].to, m->moves[n].why));
        good = good && append(all, Py_BuildValue("(sNN)", m->name, PyList_AsTuple(states), PyList_AsTuple(moves)));
        Py_XDECREF(states);
        Py_XDECREF(moves);
    }
    PyObject *rows = good ? PyList_AsTuple(all) : NULL;
    Py_XDECREF(all);
    return rows;
}

/* Each (name, default, least, most), in the owner's units. */
static PyObject *config_rows(void)
{
    PyObject *all = PyList_New(0);
    bool good = all != NULL;
#define X(name, unit, value, least, most)                                                          \
    good = good && append(all, Py_BuildValue("(sddd)", #name, (double)(value), (double)(least), (double)(most)));
    ENGINE_CONFIG(X)
#undef X
    PyObject *rows = good ? PyList_AsTuple(all) : NULL;
    Py_XDECREF(all);
    return rows;
}

/* Each (name, burst, per second, what). */
static PyObject *rate_rows(void)
{
    PyObject *all = PyList_New(0);
    bool good = all != NULL;
#define X(name, burst, per_second, what) good = good && append(all, Py_BuildValue("(siis)", #name, burst, per_second, what));
    BUDGET_RATES(X)
#undef X
    PyObject *rows = good ? PyList_AsTuple(all) : NULL;
    Py_XDECREF(all);
    return rows;
}

/* Each (name, number, what): counts that bound a peer, then sizes of buffers. */
static PyObject *number_rows(bool sizes)
{
    PyObject *all = PyList_New(0);
    bool good = all != NULL;
#define X(name, number, what) good = good && append(all, Py_BuildValue("(sis)", #name, (int)name, what));
    if (sizes) {
        BUFFER_SIZES(X)
    } else {
        BUDGET_COUNTS(X)
    }
#undef X
    PyObject *rows = good ? PyList_AsTuple(all) : NULL;
    Py_XDECREF(all);
    return rows;
}

static bool add(PyObject *module, const char *name, PyObject *value)
{
    bool good = value && PyModule_AddObjectRef(module, name, value) == 0;
    Py_XDECREF(value);
    return good;
}

static bool add_tables(PyObject *module)
{
    return add(module, "MACHINES", machine_rows()) && add(module, "CONFIG", config_rows()) &&
           add(module, "BUDGET_RATES", rate_rows()) && add(module, "BUDGET_COUNTS", number_rows(false)) &&
           add(module, "BUFFER_SIZES", number_rows(true));
}

static int fill_module(PyObject *module)
{
    PyObject *reasons = PyTuple_New(REASON_COUNT);
    for (int i = 0; i < REASON_COUNT && reasons; i++)
        PyTuple_SET_ITEM(reasons, i, PyUnicode_FromString(engine_reasons[i]));
    PyObject *type = PyType_FromSpec(&core_spec);
    int failed = !reasons || !type || PyModule_AddObjectRef(module, "REASONS", reasons) ||
                 PyModule_AddObjectRef(module, "Core", type) || !add_tables(module);
    Py_XDECREF(reasons);
    Py_XDECREF(type);
    return failed ? -1 : 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, fill_module},
    {0, NULL},
};

static PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "hbone._engine",
    .m_doc = "The HBONE byte engine (C). Use hbone.engine.",
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__engine(void)
{
    return PyModuleDef_Init(&module_def);
}
