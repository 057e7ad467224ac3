/* hbone._engine.Core: one engine. Arguments in, tuples out; no decision is made here. */
#ifndef HBONE_MODULE_CORE_H
#define HBONE_MODULE_CORE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "engine.h"

struct core {
    PyObject_HEAD
    struct engine *engine;
};

static inline struct engine *engine_of(PyObject *self)
{
    return ((struct core *)self)->engine;
}

/* The type; NULL with an exception. */
PyObject *core_type(void);

#endif
