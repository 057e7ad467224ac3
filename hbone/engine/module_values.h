/* Values between Python and the engine. Functions that fail have set an exception. */
#ifndef HBONE_MODULE_VALUES_H
#define HBONE_MODULE_VALUES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "engine.h"

bool config_from_dict(struct engine_config *config, PyObject *settings);
/* (type number, fields as in hbone/engine/events.py). */
PyObject *event_to_tuple(const struct engine_event *event);
bool address_from_text(struct address *a, const char *ip, unsigned port);
/* The strings of a tuple of str, valid while the tuple lives; PyMem_Free the array. */
const char **texts_from_tuple(PyObject *tuple);
/* The header block that a CONNECT is answered with: status 200 and the headers; nothing for no headers. */
bool encode_answer(uint8_t *block, size_t *size, size_t room, PyObject *headers);
/* The header block of a CONNECT. */
bool encode_request(uint8_t *block, size_t *size, size_t room, const char *authority, Py_ssize_t authority_size,
                    PyObject *headers);

#endif
