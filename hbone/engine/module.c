/* hbone._engine: the engine for CPython. The module object and what it tells of the core. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "engine.h"
#include "module_core.h"
#include "module_tables.h"

/* Takes the value over. False with an exception. */
static bool add(PyObject *module, const char *name, PyObject *value)
{
    bool good = value && PyModule_AddObjectRef(module, name, value) == 0;
    Py_XDECREF(value);
    return good;
}

/* The names of the reasons, by number. */
static PyObject *reasons(void)
{
    PyObject *names = PyTuple_New(REASON_COUNT);
    for (int i = 0; i < REASON_COUNT && names; i++) {
        PyObject *name = PyUnicode_FromString(engine_reasons[i]);
        if (name)
            PyTuple_SET_ITEM(names, i, name);
        else
            Py_CLEAR(names);
    }
    return names;
}

static int fill_module(PyObject *module)
{
    bool good = add(module, "REASONS", reasons()) && add(module, "Core", core_type()) &&
                add(module, "MACHINES", machine_rows()) && add(module, "CONFIG", config_rows()) &&
                add(module, "BUDGET_RATES", rate_rows()) && add(module, "BUDGET_COUNTS", count_rows()) &&
                add(module, "BUFFER_SIZES", size_rows());
    return good ? 0 : -1;
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
