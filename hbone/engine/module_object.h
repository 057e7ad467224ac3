/* A Core object: one engine. */
#ifndef HBONE_MODULE_OBJECT_H
#define HBONE_MODULE_OBJECT_H

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

#endif
