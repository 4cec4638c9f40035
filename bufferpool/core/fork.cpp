// Fork: a child is a client of its own from its first instruction.
//
// Before the fork, the parent claims a slot for the child with a description of
// its own, and repeats there the pins of all live arrays. The child keeps that
// description, the parent closes it. There is no moment at which a view in the
// child is unpinned, and none at which the child keeps the parent alive.
#include "py.h"

#include <pthread.h>
#include <vector>

#include "client.h"

namespace bp {

SegmentObject* attached;

struct ForkPlan {
    SegmentObject* seg;
    int fd;
    u32 client;
};
static std::vector<ForkPlan>* fork_plans = new std::vector<ForkPlan>;

static void before_fork() {
    fork_plans->clear();
    for (SegmentObject* seg = attached; seg; seg = seg->next) {
        Segment* s = seg->s;
        if (!s || !s->me) continue;
        ForkPlan plan{seg, prim::reopen(s->fd), 0};
        if (plan.fd >= 0) {
            plan.client = claim_slot(*s, plan.fd);
            if (!plan.client && reap_all(*s)) plan.client = claim_slot(*s, plan.fd);
        }
        for (PinNode* p = seg->pins.next; plan.client && p != &seg->pins; p = p->next)
            s->pin_count_of(plan.client, p->frame).add_seq_cst(1);
        fork_plans->push_back(plan);
    }
}

static void after_fork_parent() {
    for (ForkPlan& plan : *fork_plans)
        if (plan.fd >= 0) close(plan.fd);
    fork_plans->clear();
}

static void after_fork_child() {
    for (ForkPlan& plan : *fork_plans) {
        Segment* s = plan.seg->s;
        close(s->fd);
        s->fd = plan.fd;
        u32 parent = s->me;
        s->become(plan.client);
        plan.seg->lost = plan.client == 0;
        plan.seg->forks++;
        plan.seg->active = plan.seg->writes = 0;
        s->ops_used.store_relaxed(0);
        s->ops_held.store_relaxed(0);
        for (auto& use : s->lock_use) use = {};
        for (auto& thread : s->op_thread) thread.store_relaxed(0);
        for (auto& spare : s->spares) spare.store_relaxed(0);
        for (auto& later : s->later) later.store_relaxed(0);
        new (&s->reap_mutex) std::recursive_mutex;
        s->reaping = s->leads = 0;
        if (s->me) {
            s->client().pid.store_relaxed(u32(getpid()));
            s->client().start_time.store_relaxed(prim::start_time());
            memcpy(s->client().name, s->clients[parent - 1].name, sizeof(Client::name));
        }
    }
    fork_plans->clear();
    forget_signals();
}

void watch_forks() { pthread_atfork(before_fork, after_fork_parent, after_fork_child); }

}  // namespace bp
