#pragma once

namespace clara {

/// What is called of an OpenMP runtime. Those of GCC and LLVM have it by the same names.
struct OpenMp {
    /// GOMP_parallel: calls work(data) on `threads` threads at once, the caller's among them, and
    /// returns when all are done. 0 means as many as most_threads() says. Where the runtime has
    /// fewer to give, as within another call, it is fewer. `work` may not throw.
    void (*parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);
    /// omp_get_max_threads, of the calling thread.
    int (*most_threads)();
    /// omp_get_num_threads: those of the call that the calling thread works in.
    int (*threads)();
};

/// From now on threads are shared with `library`, such as "libtorch_cpu.so": those of the runtime
/// that it is bound to. Does nothing
/// - if it has not been loaded, or computes with another kind of threads. No runtime is ever loaded
///   for this: two in one process take the processors from each other.
/// - in a fork. It has none of the threads that the runtime believes to be there, and would wait
///   for them without end.
void share_threads_of(const char* library);

/// That runtime, or nullptr: there is none, or this process has become a fork since.
const OpenMp* shared_team();

}  // namespace clara
