// Fork: a child is a client of its own from its first instruction.
//
// Before the fork, the parent takes a slot for the child, with a separate description, and repeats there the pins of
// all live arrays. The child keeps that description, the parent closes it. So a view in the child is never unpinned,
// and the child never keeps the parent's client alive.
//
// Every description that may hold a byte lock is on a list before it takes the lock, and is removed when it is closed.
// The child closes all of them but its own, including those of a segment that another thread was attaching or detaching
// when the process forked, which no SegmentObject has.
#include "python/py.h"

#include <mutex>
#include <pthread.h>

#include "os/transfers.h"
#include "protocol/client.h"
#include "python/objects.h"

namespace bp {

SegmentObject* attached;
Mutex lists;

// ---- all descriptions of this process ------------------------------------------

static std::mutex mapped_mutex;   // held during a fork, so that the list is consistent in the child
static Segment* mapped_segments;  // linked by `next`

// Opens a new description of the same file, and marks it. Returns the descriptor, or -errno.
static int own_description(int fd, u64& mark) {
    int own = prim::move_up(prim::reopen(fd));
    if (own < 0) return own;
    int r = prim::set_mark(own, mark = prim::new_mark());
    if (r) close(own);
    return r ? r : own;
}

// Gives the segment a description that only it uses.
int map_client(Segment* s, int fd) {
    std::lock_guard<std::mutex> guard(mapped_mutex);
    struct stat st;
    int own = fstat(fd, &st) == 0 ? own_description(fd, s->mark) : -errno;
    if (own < 0) return own;
    s->fd = own;
    s->device = st.st_dev;
    s->inode = st.st_ino;
    s->next = mapped_segments;
    mapped_segments = s;
    return 0;
}

void unmap_client(Segment* s) {
    unmap_objects(*s);
    prim::unmap_segment(s->base, s->mapped);
    {
        std::lock_guard<std::mutex> guard(mapped_mutex);
        for (Segment** p = &mapped_segments; *p; p = &(*p)->next)
            if (*p == s) {
                *p = s->next;
                break;
            }
        if (s->has_descriptor()) close(s->fd);  // otherwise the number belongs to another file
    }
    unmake(s);
}

// Whether a client is one of this process, or a child of it that has not stored its pid yet. Needs `mapped_mutex`.
static bool is_ours(const Segment& s, u32 c) {
    bool found = false;
    for (Segment* p = mapped_segments; p; p = p->next)
        found |= (p->me == c || p->has_handed(c)) && p->device == s.device && p->inode == s.inode;
    return found;
}

// A slot that names our pid, and is none of ours, belonged to the program that this process was before an exec. Clears
// the pid there, so that the client is dead for every process: with our mapping it would be taken for one that lives
// and has lost its descriptor.
void disown_former_clients(Segment& s) {
    std::lock_guard<std::mutex> guard(mapped_mutex);
    for (u32 c = 1, slots = s.slots(); c <= slots; c++) {
        Client& slot = s.clients[c - 1];
        u32 pid = prim::process_id();
        if (slot.state.load_acquire() != CLIENT_LIVE || slot.pid.load_acquire() != pid || is_ours(s, c)) continue;
        if (!prim::share_pids(slot.namespaces.load_relaxed(), prim::namespaces())) continue;
        if (s.byte_is_locked(LOCKS_AT + long(c)) == 0) slot.pid.cas_seq_cst(pid, 0);
    }
}

static bool has_client(const Segment& s, u32 c) {
    // a fork is being prepared, or the list is changing: assume that it is ours; the next check decides
    if (!mapped_mutex.try_lock()) return true;
    bool found = is_ours(s, c);
    mapped_mutex.unlock();
    return found;
}

// ---- before and after ----------------------------------------------------------

// Takes a slot for the child, with a description of the child's own. If none can be opened, the child's process alone
// shows that it lives; our description then holds the slot's byte until the child has stored its pid.
template <class Each>
static void plan_child(Segment& s, ForkPlan& plan, Each each_pin) {
    plan.lost = LOST_DESCRIPTOR;
    if (!s.has_descriptor()) return;
    plan.fd = own_description(s.fd, plan.mark);
    plan.lost = -plan.fd;
    if (plan.fd >= 0) {
        plan.client = hand_over(s, plan.fd, each_pin);
        plan.lost = plan.client ? 0 : LOST_SLOTS;
    }
    if (plan.lost) plan.client = hand_over(s, plan.fd >= 0 ? plan.fd : s.fd, each_pin, true, plan.fd < 0);
    if (plan.client && plan.fd < 0) s.hand(plan.client);
}

// Repeats our pins on objects for the child: in its own row, or in ours, until we detach.
static void repeat_object_pins(SegmentObject* seg) {
    Segment& s = *seg->s;
    if (!has_objects(s)) return;
    u32 c = seg->plan.client;
    Patience patience(PATIENT_SLICES);
    if (!c || grow_pin_row(s, c, false) != 0) c = s.me;
    for (PinNode* p = seg->pins.next; p != &seg->pins; p = p->next)
        if (p->frame & OBJECT_PIN) s.object_pins(c)[p->frame & ~OBJECT_PIN].add_seq_cst(1);
}

static void before_fork() {
    forking = true;
    lists.lock();
    mapped_mutex.lock();
    for (SegmentObject* seg = attached; seg; seg = seg->next) {
        seg->pins_mutex.lock();  // until the child has its pins
        Segment& s = *seg->s;
        auto each_pin = [seg](auto visit) {
            for (PinNode* p = seg->pins.next; p != &seg->pins; p = p->next)
                if (!(p->frame & OBJECT_PIN)) visit(p->frame);
        };
        seg->plan = {-1, 0, 0, 0};
        if (!s.me) continue;
        plan_child(s, seg->plan, each_pin);
        repeat_object_pins(seg);
        if (seg->plan.client) continue;
        // Without a slot, the child's pins are kept in our own column.
        each_pin([&s](u32 f) {
            s.lent = true;
            if (s.pin_count(f).load_relaxed() < PIN_MAX) s.pin_count(f).add_seq_cst(1);
        });
    }
    forking = false;
}

static void after_fork_parent() {
    for (SegmentObject* seg = attached; seg; seg = seg->next) {
        if (seg->plan.fd >= 0) close(seg->plan.fd);
        seg->pins_mutex.unlock();
    }
    mapped_mutex.unlock();
    lists.unlock();
}

// Resets the private state of a segment in a child, because it belongs to threads that only the parent has.
static void renew(Segment& s) {
    s.ops_used.store_relaxed(0);
    s.ops_held.store_relaxed(0);
    for (auto& use : s.lock_use) use = {};
    for (auto& thread : s.op_thread) thread.store_relaxed(0);
    for (auto& spare : s.spares) spare.store_relaxed(0);
    s.later.store_relaxed(0);
    new (&s.reap_mutex) std::recursive_timed_mutex;
    new (&s.objects.mapping) std::mutex;
    s.objects.random.store_relaxed(0);
    s.reaping = s.leads = 0;
    s.handed = 0;
    s.lent = false;
}

// Closes the descriptions that hold the parent's byte locks, and keeps the child's own on the list. A
// segment that another thread was attaching or detaching is unmapped, because in the child no object has it.
static void close_inherited() {
    Segment* kept = nullptr;
    for (Segment *s = mapped_segments, *next; s; s = next) {
        next = s->next;
        if (s->has_descriptor()) close(s->fd);
        s->fd = -1;
        bool known = false;
        for (SegmentObject* seg = attached; seg; seg = seg->next) known |= seg->s == s;
        if (known) {
            s->next = kept;
            kept = s;
        } else {
            prim::unmap_segment(s->base, s->mapped);
        }
    }
    mapped_segments = kept;
}

static void after_fork_child() {
    new (&mapped_mutex) std::mutex;
    renew_mutex(lists);
    for (SegmentObject* seg = attached; seg; seg = seg->next)
        if (seg->plan.client && seg->plan.fd < 0) introduce_unlocked(*seg->s, seg->plan.client);
    close_inherited();
    for (SegmentObject* seg = attached; seg; seg = seg->next) {
        Segment* s = seg->s;
        u32 parent = s->me;
        s->fd = seg->plan.fd;
        s->mark = seg->plan.mark;
        s->become(seg->plan.client, seg->plan.lost != 0);
        if (parent) seg->lost = seg->plan.lost;
        seg->forks++;
        seg->active = 0;
        for (SpaceObject* sp = seg->handles; sp; sp = sp->next) sp->busy = 0;
        seg->writes = 0;
        seg->users.store_seq_cst(0);
        seg->shut.store_seq_cst(0);
        renew_mutex(seg->pins_mutex);
        renew(*s);
        if (s->me) {
            s->client().start_time.store_relaxed(prim::start_time());
            s->client().namespaces.store_relaxed(prim::namespaces());
            s->client().pid.store_relaxed(prim::process_id());
            memcpy(s->client().name, s->clients[parent - 1].name, sizeof(Client::name));
        }
    }
    forget_signals();
    TransferThreads::of_this_process().forget();
    Stagings::of_this_process().forget();
}

void watch_forks() {
    is_our_client = has_client;
    pthread_atfork(before_fork, after_fork_parent, after_fork_child);
}

}  // namespace bp
