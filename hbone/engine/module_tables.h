/* The core's own tables for CPython: what docs/engine.md is drawn from. Tuples; NULL with an exception. */
#ifndef HBONE_MODULE_TABLES_H
#define HBONE_MODULE_TABLES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* ((name, ((state, text), ...), ((from or None, to, why), ...)), ...) */
PyObject *machine_rows(void);
/* Each (name, default, least, most), in the owner's units. */
PyObject *config_rows(void);
/* Each (name, burst, per second, what). */
PyObject *rate_rows(void);
/* Each (name, number, what): counts that bound a peer; sizes of buffers. */
PyObject *count_rows(void);
PyObject *size_rows(void);

#endif
