/* Events as tuples. */
#ifndef HBONE_MODULE_EVENTS_H
#define HBONE_MODULE_EVENTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "engine.h"

/* (type number, fields as in hbone/engine/events.py); NULL with an exception. */
PyObject *event_to_tuple(const struct engine_event *event);

#endif
