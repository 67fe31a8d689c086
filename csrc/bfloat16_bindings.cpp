// Linear layers and attention in bfloat16, as Python sees them: addresses of contiguous memory that
// the caller keeps alive.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "core/attention/attention.hpp"
#include "core/linear/linear.hpp"

namespace py = pybind11;

namespace clara {
namespace {

template <class T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

void require_linear(int64_t rows, int64_t inputs, int64_t outputs, int64_t rank, int threads) {
    require(multiplies_bfloat16(), "there is no such kernel for this processor");
    require(rows >= 0 && outputs >= 0, "rows and outputs must not be negative");
    require(inputs >= 2 && inputs % 2 == 0,
            "inputs must be a positive even number, got " + std::to_string(inputs));
    require(rank >= 0 && rank % 2 == 0, "rank must be even, got " + std::to_string(rank));
    require(threads >= 1, "threads must be at least 1, got " + std::to_string(threads));
}

void linear(int64_t rows, int64_t inputs, int64_t outputs, int64_t rank, uintptr_t x,
            uintptr_t weight, uintptr_t bias, uintptr_t down, uintptr_t up, float scaling,
            uintptr_t changes, uintptr_t out, int threads) {
    require_linear(rows, inputs, outputs, rank, threads);
    const AdaptedLinear call{inputs,
                             outputs,
                             rank,
                             at<const char>(x),
                             inputs,
                             at<const char>(weight),
                             at<float>(bias),
                             at<const char>(down),
                             at<const char>(up),
                             scaling,
                             at<char>(out),
                             outputs,
                             at<char>(changes)};
    const py::gil_scoped_release release;
    adapted_linear(call, rows, threads);
}

void gradient(int64_t rows, int64_t inputs, int64_t outputs, int64_t rank, uintptr_t grad,
              uintptr_t weight, uintptr_t down, uintptr_t up, float scaling, uintptr_t thin,
              uintptr_t out, int threads) {
    require_linear(rows, inputs, outputs, rank, threads);
    require(outputs % 2 == 0, "outputs must be even, got " + std::to_string(outputs));
    const LinearGradient call{inputs,
                              outputs,
                              rank,
                              at<const char>(grad),
                              at<const char>(weight),
                              at<const char>(down),
                              at<const char>(up),
                              scaling,
                              at<char>(thin),
                              at<char>(out)};
    const py::gil_scoped_release release;
    linear_gradient(call, rows, threads);
}

void product_of_thin(int64_t rows, int64_t columns, int64_t rank, uintptr_t wide, uintptr_t thin,
                     bool transposed, uintptr_t out, int threads) {
    require_linear(rows, columns, columns, rank, threads);
    const ThinProduct call{
        rows,       columns,       rank, at<const char>(wide), at<const char>(thin),
        transposed, at<float>(out)};
    const py::gil_scoped_release release;
    thin_product(call, threads);
}

/// Skips documents that have fewer rows than queries, as all of this operator's kernels do: bounds
/// are not checked everywhere.
std::vector<AttendedDocument> documents_of(const std::vector<int64_t>& bounds,
                                           const std::vector<int64_t>& query_bounds) {
    require(bounds.size() == query_bounds.size(), "each document must have its queries");
    std::vector<AttendedDocument> documents;
    for (size_t i = 0; i + 1 < bounds.size(); ++i) {
        const AttendedDocument each{query_bounds[i], query_bounds[i + 1] - query_bounds[i],
                                    bounds[i], bounds[i + 1] - bounds[i]};
        if (each.queries > 0 && each.queries <= each.rows) documents.push_back(each);
    }
    return documents;
}

/// Which queries read which keys, as Python hands it on.
struct AttentionSizes {
    std::vector<int64_t> bounds, query_bounds;
    int64_t heads, kv_heads, width;
    float scale;
    int64_t window;
};

AttentionInputs attention_inputs(const AttentionSizes& sizes, uintptr_t q, uintptr_t k, uintptr_t v,
                                 int threads) {
    require(attends_bfloat16(), "there is no such kernel for this processor");
    const int64_t heads = sizes.heads, kv_heads = sizes.kv_heads, width = sizes.width;
    require(kv_heads >= 1 && heads >= 1 && heads % kv_heads == 0,
            "heads must be a multiple of kv_heads, got " + std::to_string(heads) + " and " +
                std::to_string(kv_heads));
    require(width >= 16 && width % 16 == 0,
            "width must be a multiple of 16, got " + std::to_string(width));
    require(sizes.window >= 0, "window must not be negative, got " + std::to_string(sizes.window));
    require(threads >= 1, "threads must be at least 1, got " + std::to_string(threads));
    return {
        heads,       kv_heads,    width, at<const char>(q), at<const char>(k), at<const char>(v),
        sizes.scale, sizes.window};
}

void attention(const AttentionSizes& sizes, uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t out,
               uintptr_t lse, int threads) {
    const PackedAttention call{attention_inputs(sizes, q, k, v, threads), at<char>(out),
                               at<float>(lse)};
    const std::vector<AttendedDocument> documents = documents_of(sizes.bounds, sizes.query_bounds);
    const py::gil_scoped_release release;
    packed_attention(call, documents, threads);
}

void attention_gradient(const AttentionSizes& sizes, uintptr_t q, uintptr_t k, uintptr_t v,
                        uintptr_t grad, uintptr_t dq, uintptr_t dk, uintptr_t dv, int threads) {
    const AttentionGradient call{attention_inputs(sizes, q, k, v, threads), at<const char>(grad),
                                 at<char>(dq), at<char>(dk), at<char>(dv)};
    std::vector<AttendedDocument> documents = documents_of(sizes.bounds, sizes.query_bounds);
    const py::gil_scoped_release release;
    packed_attention_gradient(call, std::move(documents), threads);
}

}  // namespace

void define_bfloat16(py::module_& module) {
    module.def("multiplies_bfloat16", &multiplies_bfloat16);
    module.def("attends_bfloat16", &attends_bfloat16);
    module.def("linear", &linear);
    module.def("linear_gradient", &gradient);
    module.def("thin_product", &product_of_thin);
    py::class_<AttentionSizes>(module, "AttentionSizes")
        .def(py::init([](std::vector<int64_t> bounds, std::vector<int64_t> query_bounds,
                         int64_t heads, int64_t kv_heads, int64_t width, float scale,
                         int64_t window) {
            return AttentionSizes{
                std::move(bounds), std::move(query_bounds), heads, kv_heads, width, scale, window};
        }));
    module.def("attention", &attention);
    module.def("attention_gradient", &attention_gradient);
}

}  // namespace clara
