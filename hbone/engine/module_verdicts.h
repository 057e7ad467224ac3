/* Kept verdicts, for module.c. */
#ifndef HBONE_MODULE_VERDICTS_H
#define HBONE_MODULE_VERDICTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "engine.h"

PyObject *keep_plain(struct engine *e, PyObject *args);
PyObject *keep_tunnel(struct engine *e, PyObject *args);

#endif
