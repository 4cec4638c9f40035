// What is known of a file: the fields of file_state.FileState, between Python and the slot of a space.
#pragma once

#include "python/py.h"

namespace bp {

struct FileRecord {
    unsigned long long device = 0, inode = 0, size = 0, mtime = 0, ctime = 0, doubt = 0;

    // From a FileState; false and an exception for anything else.
    bool parse(PyObject* state) {
        if (!PyTuple_Check(state)) return raise("TypeError", "a file's state is a tuple"), false;
        return PyArg_ParseTuple(state, "KKKKKK:FileState", &device, &inode, &size, &mtime, &ctime, &doubt);
    }
    static FileRecord of(const SpaceSlot& t) {
        return {t.device.load_relaxed(),   t.inode.load_relaxed(),    t.size_bytes.load_relaxed(),
                t.mtime_ns.load_relaxed(), t.ctime_ns.load_relaxed(), t.doubt.load_relaxed()};
    }
    PyObject* to_tuple() const { return Py_BuildValue("(KKKKKK)", device, inode, size, mtime, ctime, doubt); }
    void store(SpaceSlot& t) const {
        t.device.store_relaxed(device);
        t.inode.store_relaxed(inode);
        t.size_bytes.store_relaxed(size);
        BP_POINT("record.half");
        t.mtime_ns.store_relaxed(mtime);
        t.ctime_ns.store_relaxed(ctime);
        t.doubt.store_relaxed(doubt);
    }
};

// What a flush, or a look at the file, has found out: so many pages are stored at least, and the file is like this.
// The flush lock is held. A client that dies among the fields leaves `flush_open`: like a flush that was killed, it has
// left a size and times that say nothing about other programs.
inline void record_store(SpaceSlot& t, u64 stored, bool open, const FileRecord* file) {
    u64 before = t.stored.load_relaxed();
    while (before < stored && !t.stored.cas_seq_cst(before, stored)) {
    }
    if (file) {
        t.flush_open.store_seq_cst(1);
        file->store(t);
    }
    t.flush_open.store_release(u32(open));
}

}  // namespace bp
