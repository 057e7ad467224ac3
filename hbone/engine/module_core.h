/* hbone._engine.Core: one engine. Arguments in, tuples out; no decision is made here. */
#ifndef HBONE_MODULE_CORE_H
#define HBONE_MODULE_CORE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* The type; NULL with an exception. */
PyObject *core_type(void);

#endif
