#include "cuda_emulator.hpp"

#include <sys/mman.h>

#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>

#include "fiber.hpp"

namespace emulator {
namespace {

constexpr size_t kStackBytes = 128 << 10;

struct Warp {
    Meeting meetings[2];  // one is read while the next is filled
    int generation = 0;
    int arrived = 0;
    const char* kind = nullptr;
};

struct Thread {
    FiberContext context{};
    dim3 index;
    bool done = false;
    const int* awaited = nullptr;  // goes on when this is no longer `seen`
    int seen = 0;
    std::vector<Copy> open;
    std::vector<std::vector<Copy>> committed;
};

/// The block that runs.
struct Block {
    dim3 grid, index;
    unsigned size = 0;
    unsigned char* shared = nullptr;
    const std::function<void()>* kernel = nullptr;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    int generation = 0, result = 0, gathered = 0;
    unsigned arrived = 0;
    const char* kind = nullptr;
    Thread* self = nullptr;
    FiberContext scheduler{};
    std::string failure;
    std::mt19937 random;
};

Block* block = nullptr;

char* stacks(unsigned threads) {
    static char* memory = nullptr;
    static unsigned held = 0;
    if (threads > held) {
        if (memory != nullptr) munmap(memory, held * kStackBytes);
        void* mapped = mmap(nullptr, threads * kStackBytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (mapped == MAP_FAILED) throw std::runtime_error("no memory for stacks");
        memory = static_cast<char*>(mapped);
        held = threads;
    }
    return memory;
}

void yield() { switch_fiber(block->self->context, block->scheduler); }

void wait_while(const int& counter, int seen) {
    block->self->awaited = &counter;
    block->self->seen = seen;
    while (counter == seen) yield();
    block->self->awaited = nullptr;
}

void make(const Copy& copy) {
    std::memset(copy.to, 0, 16);
    std::memcpy(copy.to, copy.from, copy.bytes);
}

void thread_main() {
    finish_switch();
    (*block->kernel)();
    if (!block->self->open.empty() || !block->self->committed.empty()) {
        fail("a thread ends with copies under way");
    }
    block->self->done = true;
    yield();
    std::abort();
}

std::vector<unsigned> ordered(unsigned count, std::mt19937& random) {
    std::vector<unsigned> order(count);
    std::iota(order.begin(), order.end(), 0u);
    if (settings().order == Order::descending) std::reverse(order.begin(), order.end());
    if (settings().order == Order::random) std::shuffle(order.begin(), order.end(), random);
    return order;
}

void report_deadlock() {
    unsigned done = 0;
    for (const Thread& thread : block->threads) done += thread.done;
    std::string message = "threads wait for ever: " + std::to_string(block->arrived) + " of " +
                          std::to_string(block->size) + " at a barrier, " + std::to_string(done) +
                          " have ended";
    for (const Warp& warp : block->warps) {
        if (warp.arrived > 0) {
            message += std::string(", ") + std::to_string(warp.arrived) + " lanes at " + warp.kind;
        }
    }
    throw std::runtime_error(message);
}

void run_block() {
    char* memory = stacks(block->size);
    for (unsigned i = 0; i < block->size; ++i) {
        Thread& thread = block->threads[i];
        thread.index = dim3(i, 0, 0);
        start_fiber(thread.context, memory + i * kStackBytes, kStackBytes, thread_main);
    }
    for (unsigned running = block->size; running > 0;) {
        bool progress = false;
        for (const unsigned i : ordered(block->size, block->random)) {
            Thread& thread = block->threads[i];
            if (thread.done) continue;
            if (thread.awaited != nullptr && *thread.awaited == thread.seen) continue;
            progress = true;
            block->self = &thread;
            switch_fiber(block->scheduler, thread.context);
            if (!block->failure.empty()) throw std::runtime_error(block->failure);
            if (thread.done) --running;
        }
        if (!progress) report_deadlock();
    }
}

}  // namespace

Settings& settings() {
    static Settings settings;
    return settings;
}

void run(dim3 grid, unsigned threads, size_t shared, const std::function<void()>& kernel) {
    if (threads == 0 || threads > 1024 || grid.x == 0 || grid.y == 0 || grid.y > 65535) {
        throw std::runtime_error("invalid configuration argument");
    }
    if (shared > 227u << 10) throw std::runtime_error("too much shared memory");
    void* memory = nullptr;  // of this size exactly, so that a sanitizer sees what lies beyond
    if (posix_memalign(&memory, 128, std::max<size_t>(shared, 1)) != 0) throw std::bad_alloc();
    const std::unique_ptr<void, decltype(&std::free)> owner(memory, std::free);
    std::mt19937 random(settings().seed);
    for (const unsigned i : ordered(grid.x * grid.y, random)) {
        Block current;
        current.random = random;
        current.grid = grid;
        current.index = dim3(i % grid.x, i / grid.x, 0);
        current.size = threads;
        current.shared = static_cast<unsigned char*>(memory);
        current.kernel = &kernel;
        current.threads.resize(threads);
        current.warps.resize((threads + 31) / 32);
        std::memset(memory, 0xff, shared);  // NaN, and no sensible number
        block = &current;
        run_block();
        random = current.random;
    }
    block = nullptr;
}

unsigned char* shared_memory() { return block->shared; }
dim3 thread_index() { return block->self->index; }
dim3 block_index() { return block->index; }
dim3 block_size() { return dim3(block->size, 1, 1); }
dim3 grid_size() { return block->grid; }

void fail(const std::string& message) {
    block->failure = message;
    yield();
    std::abort();
}

int block_barrier(const char* kind, int value) {
    if (block->arrived == 0) block->kind = kind;
    if (std::string(kind) != block->kind) fail(std::string(kind) + " meets " + block->kind);
    block->gathered |= value;
    if (++block->arrived == block->size) {
        block->arrived = 0;
        block->result = block->gathered;
        block->gathered = 0;
        ++block->generation;
    } else {
        wait_while(block->generation, block->generation);
    }
    return block->result;
}

Meeting& warp_meeting(const char* kind, const Slot& value, void (*last)(Meeting&)) {
    const unsigned thread = block->self->index.x;
    Warp& warp = block->warps[thread / 32];
    if (warp.arrived == 0) warp.kind = kind;
    if (std::string(kind) != warp.kind) fail(std::string(kind) + " meets " + warp.kind);
    Meeting& meeting = warp.meetings[warp.generation % 2];
    meeting.slots[thread % 32] = value;
    if (++warp.arrived == 32) {
        if (last != nullptr) last(meeting);
        warp.arrived = 0;
        ++warp.generation;
    } else {
        wait_while(warp.generation, warp.generation);
    }
    return meeting;
}

void copy_async(const Copy& copy) {
    if (reinterpret_cast<uintptr_t>(copy.to) % 16 != 0 ||
        reinterpret_cast<uintptr_t>(copy.from) % 16 != 0) {
        fail("cp.async of unaligned bytes");
    }
    const bool at_once = settings().order == Order::descending ||
                         (settings().order == Order::random && block->random() % 2 == 0);
    if (at_once) {
        make(copy);
    } else {
        block->self->open.push_back(copy);
    }
}

void commit_copies() {
    block->self->committed.push_back(std::move(block->self->open));
    block->self->open.clear();
}

void wait_for_copies(int pending) {
    auto& committed = block->self->committed;
    while (static_cast<int>(committed.size()) > pending) {
        for (const Copy& copy : committed.front()) make(copy);
        committed.erase(committed.begin());
    }
}

}  // namespace emulator

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    const emulator::Settings& settings = emulator::settings();
    *value = attribute == cudaDevAttrMultiProcessorCount      ? settings.multiprocessors
             : attribute == cudaDevAttrComputeCapabilityMajor ? settings.capability / 10
             : settings.capability == 75                      ? 64 << 10
                                                              : 227 << 10;
    return 0;
}
