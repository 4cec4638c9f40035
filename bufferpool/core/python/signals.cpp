// Signals while the core waits. A handler is Python code, and an exception that it raises is stored: the core
// may be reaping a dead client, or deallocating an object, and must not continue with an exception set. The exception
// is raised
//
//   by the operation, if it gives up     check_signals()
//   else by the interpreter              a pending call, before its next bytecode
//
// so that no method has to check after a wait whether a handler has raised.
#include "python/py.h"

#include "protocol/client.h"

namespace bp {

thread_local bool forking;

// The stored exception, of the main thread, which is the only one that runs handlers.
static struct {
    Shared<PyObject*> type;
    PyObject *value, *trace;
} put_by;

static int raise_put_by(void*) {
    if (!put_by.type) return 0;
    PyErr_Restore(put_by.type.swap(nullptr), put_by.value, put_by.trace);
    return -1;
}

// Stores the current exception.
static void put_exception_by() {
    // one is stored already: a handler that waited in the core was interrupted by another
    if (put_by.type) return PyErr_WriteUnraisable(nullptr);
    PyObject* type;
    PyErr_Fetch(&type, &put_by.value, &put_by.trace);
    put_by.type = type;
    // if its queue is full, the next check_signals() raises the exception
    (void)Py_AddPendingCall(raise_put_by, nullptr);
}

// Called by the core between the slices of a wait, with the GIL or without it: has a handler raised? Python runs
// handlers in the main thread only. Another thread must not acquire the GIL here: it may be a daemon thread, after
// the interpreter has ended.
bool signal_came(Segment&) {
    if (forking || reaping_here) return false;
    if (put_by.type) return prim::is_main_thread();
    // Whether it is the main thread takes two system calls, and a batch of pages asks after each of them.
    static thread_local u64 last_ns;
    u64 now = prim::coarse_ns();
    if (now - last_ns < 10'000'000) return false;
    last_ns = now;
    if (!prim::is_main_thread()) return false;
    Deadline none(0);  // a handler is another call
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *type, *value, *trace;  // an exception that is being raised, which the handler must not see
    PyErr_Fetch(&type, &value, &trace);
    bool came = PyErr_CheckSignals() < 0;
    if (came) put_exception_by();
    PyErr_Restore(type, value, trace);
    PyGILState_Release(gil);
    return came;
}

// Runs the handlers of pending signals. -1: one has raised, now or during the last wait.
int check_signals() {
    if (put_by.type && prim::is_main_thread()) return raise_put_by(nullptr);
    return PyErr_CheckSignals();
}

PyObject* raise_interrupted(const char* what) {
    return check_signals() < 0 ? nullptr : raise("InterruptedError", "interrupted while waiting for %s", what);
}

// Called in a forked child: drops a stored exception, which is the parent's.
void forget_signals() {
    if (PyObject* type = put_by.type.swap(nullptr)) {
        Py_DECREF(type);
        Py_XDECREF(put_by.value);
        Py_XDECREF(put_by.trace);
    }
}

}  // namespace bp
