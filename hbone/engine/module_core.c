#include "module_core.h"

#include "module_events.h"
#include "module_object.h"
#include "module_registry.h"
#include "module_values.h"
#include "module_verdicts.h"

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

/* ---- the type */

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

PyObject *core_type(void)
{
    return PyType_FromSpec(&core_spec);
}
