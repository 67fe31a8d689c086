#pragma once

// Stacks of their own for functions that give way to each other. `switch_fiber` saves where it is
// in `from` and goes on where `to` was saved.

#include <cstddef>
#include <cstdint>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

/// Forgets what a sanitizer knows of a stack that was left without returning.
inline void forget(char* stack, size_t size) {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(stack, size);
#endif
    static_cast<void>(stack);
    static_cast<void>(size);
}

#if defined(__x86_64__) && !defined(CLARA_UCONTEXT)

struct FiberContext {
    void* stack_pointer = nullptr;
    void* bottom = nullptr;  // of a fiber's stack; null for the thread that runs them
    size_t size = 0;
};

extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.text
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch, .-emulator_switch
)");

inline void start_fiber(FiberContext& context, char* stack, size_t size, void (*main)()) {
    forget(stack, size);
    void** top = reinterpret_cast<void**>(stack + size);
    *--top = nullptr;  // where main would return to; also aligns its frame
    *--top = reinterpret_cast<void*>(main);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    context.stack_pointer = top;
    context.bottom = stack;
    context.size = size;
}

inline void jump(FiberContext& from, FiberContext& to) {
    emulator_switch(&from.stack_pointer, to.stack_pointer);
}

#else
#include <ucontext.h>

struct FiberContext {
    ucontext_t context;
    void* bottom = nullptr;
    size_t size = 0;
};

inline void start_fiber(FiberContext& context, char* stack, size_t size, void (*main)()) {
    forget(stack, size);
    getcontext(&context.context);
    context.context.uc_stack.ss_sp = stack;
    context.context.uc_stack.ss_size = size;
    context.context.uc_link = nullptr;
    makecontext(&context.context, main, 0);
    context.bottom = stack;
    context.size = size;
}

inline void jump(FiberContext& from, FiberContext& to) { swapcontext(&from.context, &to.context); }
#endif

#ifdef __SANITIZE_ADDRESS__
// The thread's own stack, which the first fiber to be switched to learns.
inline const void* thread_stack = nullptr;
inline size_t thread_stack_size = 0;

inline void finish_switch() {
    const void* bottom = nullptr;
    size_t size = 0;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    if (thread_stack == nullptr) {
        thread_stack = bottom;
        thread_stack_size = size;
    }
}

inline void switch_fiber(FiberContext& from, FiberContext& to) {
    void* fake = nullptr;
    const bool fiber = to.bottom != nullptr;
    __sanitizer_start_switch_fiber(&fake, fiber ? to.bottom : thread_stack,
                                   fiber ? to.size : thread_stack_size);
    jump(from, to);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
}
#else
inline void finish_switch() {}
inline void switch_fiber(FiberContext& from, FiberContext& to) { jump(from, to); }
#endif
