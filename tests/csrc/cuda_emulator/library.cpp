// The functions of csrc/cuda/cosine_topk.hpp for ctypes. Each returns null, or an error that is
// valid until the next call.

#include <exception>
#include <string>

#include "cuda/cosine_topk.hpp"
#include "cuda/launch.hpp"
#include "cuda/mma.cuh"

namespace {

template <class Function>
const char* errors_of(const Function& function) {
    static std::string error;
    try {
        function();
        return nullptr;
    } catch (const std::exception& exception) {
        error = exception.what();
        return error.c_str();
    }
}

void lonely_barrier() {
    if (threadIdx.x < 40) __syncthreads();
}
void uneven_shuffle() {
    if (threadIdx.x % 32 < 7) __shfl_sync(0xffffffffu, 1, 0);
}
void late_copy() {
    static unsigned char bytes[16];
    clara::cp_async_16(emulator::shared_memory(), bytes, 16);
    clara::cp_async_commit();
}

}  // namespace

extern "C" {

void configure(int order, unsigned seed, int multiprocessors, int capability) {
    emulator::settings() = {static_cast<emulator::Order>(order), seed, multiprocessors, capability};
}

const char* inverse_norms(const clara::CudaRows* rows, float* out, int device) {
    return errors_of([&] { clara::cuda_inverse_norms(*rows, out, device, nullptr); });
}

const char* topk_workspace(const clara::CudaRows* queries, const clara::CudaRows* corpus, int64_t k,
                           int64_t* bytes) {
    return errors_of([&] { *bytes = clara::cuda_cosine_topk_workspace(*queries, *corpus, k, 0); });
}

const char* topk(const clara::CudaRows* queries, const clara::CudaRows* corpus, const float* norms,
                 const uint8_t* mask, int64_t k, float* scores, int64_t* indices, void* workspace,
                 int64_t bytes) {
    return errors_of([&] {
        clara::cuda_cosine_topk(*queries, *corpus, norms, mask, k, scores, indices, workspace,
                                bytes, 0, nullptr);
    });
}

const char* rerank_workspace(const clara::CudaRows* queries, const clara::CudaRows* corpus,
                             int64_t candidates, int64_t k, int64_t* bytes) {
    return errors_of(
        [&] { *bytes = clara::cuda_cosine_rerank_workspace(*queries, *corpus, candidates, k, 0); });
}

const char* rerank(const clara::CudaRows* queries, const clara::CudaRows* corpus,
                   const float* norms, const int64_t* rows, int64_t candidates,
                   const int32_t* offsets, int64_t k, float* scores, int64_t* indices,
                   void* workspace, int64_t bytes) {
    return errors_of([&] {
        clara::cuda_cosine_rerank(*queries, *corpus, norms, rows, candidates, offsets, k, scores,
                                  indices, workspace, bytes, 0, nullptr);
    });
}

/// Kernels that are wrong on purpose.
const char* broken(int which) {
    return errors_of([&] {
        void (*const kernels[])() = {lonely_barrier, uneven_shuffle, late_copy};
        emulator::run(dim3(1), 64, 64, kernels[which]);
    });
}
}
