/* Methods of Core: what an engine works with. */
#ifndef HBONE_MODULE_REGISTRY_H
#define HBONE_MODULE_REGISTRY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

PyObject *core_add_netns(PyObject *self, PyObject *args);
PyObject *core_remove_netns(PyObject *self, PyObject *args);
PyObject *core_listen(PyObject *self, PyObject *args);
PyObject *core_unlisten(PyObject *self, PyObject *args);
PyObject *core_set_identity(PyObject *self, PyObject *args);
PyObject *core_set_crls(PyObject *self, PyObject *args);
PyObject *core_drop_identity(PyObject *self, PyObject *args);
PyObject *core_drain(PyObject *self, PyObject *args);
PyObject *core_drain_all(PyObject *self, PyObject *unused);

#endif
