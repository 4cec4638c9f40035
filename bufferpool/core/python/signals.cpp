// Signals while the core waits. A handler is Python code, and what it raises is put by: the core
// may be at work on what somebody dead has left, where the caller of a method, or an object that is
// being deallocated, must not find an exception set. It is raised
//
//   by the operation, if it gives up     check_signals()
//   else by the interpreter              a pending call, before its next bytecode
//
// so that no method has to ask, after a wait, whether a handler has raised.
#include "python/py.h"

#include "protocol/client.h"

namespace bp {

thread_local bool forking;

// Of the main thread alone, which is the one that runs handlers.
static struct {
    Shared<PyObject*> type;
    PyObject *value, *trace;
} put_by;

static int raise_put_by(void*) {
    if (!put_by.type) return 0;
    PyErr_Restore(put_by.type.swap(nullptr), put_by.value, put_by.trace);
    return -1;
}

// An exception is set: puts it by.
static void put_exception_by() {
    if (put_by.type) return PyErr_WriteUnraisable(nullptr);  // a handler that waited in the core, inside a handler
    PyObject* type;
    PyErr_Fetch(&type, &put_by.value, &put_by.trace);
    put_by.type = type;
    (void)Py_AddPendingCall(raise_put_by, nullptr);  // its queue is full: then the next check_signals() raises it
}

// Called by the core between the slices of a wait, with the GIL or without it: has a handler raised? Python runs
// them in the main thread only. Another one must not ask for the GIL here: it may be a daemon's, and the
// interpreter gone, while it waits in the core for the end of the process.
bool signal_came(Segment&) {
    if (forking || reaping_here || !prim::is_main_thread()) return false;
    if (put_by.type) return true;
    static u64 last_ns;
    u64 now = prim::coarse_ns();
    if (now - last_ns < 10'000'000) return false;
    last_ns = now;
    Deadline none(0);  // a handler is another call
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *type, *value, *trace;  // of an exception that is on its way: no business of the handler's
    PyErr_Fetch(&type, &value, &trace);
    bool came = PyErr_CheckSignals() < 0;
    if (came) put_exception_by();
    PyErr_Restore(type, value, trace);
    PyGILState_Release(gil);
    return came;
}

// Runs the handlers of signals that have come. -1: one has raised, now or during the last wait.
int check_signals() {
    if (put_by.type && prim::is_main_thread()) return raise_put_by(nullptr);
    return PyErr_CheckSignals();
}

PyObject* raise_interrupted(const char* what) {
    return check_signals() < 0 ? nullptr : raise("InterruptedError", "interrupted while waiting for %s", what);
}

// A forked child: what its parent's handler raised is its parent's.
void forget_signals() {
    if (PyObject* type = put_by.type.swap(nullptr)) {
        Py_DECREF(type);
        Py_XDECREF(put_by.value);
        Py_XDECREF(put_by.trace);
    }
}

}  // namespace bp
