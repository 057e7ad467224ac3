#include "module_tables.h"

#include "budget.h"
#include "buffer.h"
#include "engine.h"
#include "machine.h"

/* Appends a row made by Py_BuildValue; false with an exception. */
static bool append(PyObject *list, PyObject *row)
{
    bool good = list && row && PyList_Append(list, row) == 0;
    Py_XDECREF(row);
    return good;
}

/* Takes the list over. */
static PyObject *finish(PyObject *list, bool good)
{
    PyObject *rows = good ? PyList_AsTuple(list) : NULL;
    Py_XDECREF(list);
    return rows;
}

static PyObject *state_rows(const struct machine *m)
{
    PyObject *list = PyList_New(0);
    bool good = list != NULL;
    for (size_t i = 0; i < m->n_states && good; i++)
        good = append(list, Py_BuildValue("(ss)", m->states[i].name, m->states[i].text));
    return finish(list, good);
}

static PyObject *move_rows(const struct machine *m)
{
    PyObject *list = PyList_New(0);
    bool good = list != NULL;
    for (size_t i = 0; i < m->n_moves && good; i++)
        good = append(list, Py_BuildValue("(zss)", m->moves[i].from, m->moves[i].to, m->moves[i].why));
    return finish(list, good);
}

PyObject *machine_rows(void)
{
    PyObject *list = PyList_New(0);
    bool good = list != NULL;
    for (int i = 0; i < MACHINE_COUNT && good; i++)
        good = append(list, Py_BuildValue("(sNN)", machines[i].name, state_rows(&machines[i]), move_rows(&machines[i])));
    return finish(list, good);
}

PyObject *config_rows(void)
{
    PyObject *list = PyList_New(0);
    bool good = list != NULL;
#define X(name, unit, value, least, most) good = good && append(list, Py_BuildValue("(sddd)", #name, (double)(value), (double)(least), (double)(most)));
    ENGINE_CONFIG(X)
#undef X
    return finish(list, good);
}

PyObject *rate_rows(void)
{
    PyObject *list = PyList_New(0);
    bool good = list != NULL;
#define X(name, burst, per_second, what) good = good && append(list, Py_BuildValue("(siis)", #name, burst, per_second, what));
    BUDGET_RATES(X)
#undef X
    return finish(list, good);
}

PyObject *count_rows(void)
{
    PyObject *list = PyList_New(0);
    bool good = list != NULL;
#define X(name, number, what) good = good && append(list, Py_BuildValue("(sis)", #name, (int)name, what));
    BUDGET_COUNTS(X)
#undef X
    return finish(list, good);
}

PyObject *size_rows(void)
{
    PyObject *list = PyList_New(0);
    bool good = list != NULL;
#define X(name, value, what) good = good && append(list, Py_BuildValue("(sis)", #name, (int)name, what));
    BUFFER_SIZES(X)
#undef X
    return finish(list, good);
}
