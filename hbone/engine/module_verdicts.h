/* Methods of Core: what becomes of connections, one by one or for all like it. */
#ifndef HBONE_MODULE_VERDICTS_H
#define HBONE_MODULE_VERDICTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

PyObject *core_connect_plain(PyObject *self, PyObject *args);
PyObject *core_connect_tunnel(PyObject *self, PyObject *args);
PyObject *core_refuse(PyObject *self, PyObject *args);
PyObject *core_cut(PyObject *self, PyObject *args);
PyObject *core_flush(PyObject *self, PyObject *unused);
PyObject *core_keep_plain(PyObject *self, PyObject *args);
PyObject *core_keep_tunnel(PyObject *self, PyObject *args);
PyObject *core_forget(PyObject *self, PyObject *unused);
PyObject *core_epoch(PyObject *self, PyObject *unused);

#endif
