/* Values from Python for the engine, and its errors. Functions that fail have set an exception. */
#ifndef HBONE_MODULE_VALUES_H
#define HBONE_MODULE_VALUES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "engine.h"

/* None, or OSError for -errno. */
PyObject *none_or_error(int error);
/* A handle, or OSError. */
PyObject *handle_or_error(int handle);

bool config_from_dict(struct engine_config *config, PyObject *settings);
bool address_from_text(struct address *a, const char *ip, unsigned port);
/* The strings of a tuple of str, valid while the tuple lives; PyMem_Free the array. */
const char **texts_from_tuple(PyObject *tuple);
/* The header block that a CONNECT is answered with: status 200 and the headers; nothing for no headers. */
bool encode_answer(uint8_t *block, size_t *size, size_t room, PyObject *headers);
/* The header block of a CONNECT. */
bool encode_request(uint8_t *block, size_t *size, size_t room, const char *authority, Py_ssize_t authority_size,
                    PyObject *headers);

#endif
