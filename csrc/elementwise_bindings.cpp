// Functions of rows, as Python sees them: addresses of memory that the caller keeps alive.

#include <pybind11/pybind11.h>

#include <string>

#include "bindings.hpp"
#include "core/elementwise/elementwise.hpp"

namespace py = pybind11;

namespace clara {
namespace {

DataType floating(const std::string& name) {
    if (name == "float32") return DataType::float32;
    if (name == "bfloat16") return DataType::bfloat16;
    throw std::invalid_argument("type must be 'float32' or 'bfloat16', got '" + name + "'");
}

template <class T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

void require_sizes(int64_t rows, int64_t columns, int threads) {
    require(rows >= 0, "rows must not be negative, got " + std::to_string(rows));
    require(columns >= 1, "columns must be at least 1, got " + std::to_string(columns));
    require(threads >= 1, "threads must be at least 1, got " + std::to_string(threads));
}

void rms_norm(int64_t rows, int64_t columns, const std::string& type, const std::string& out_type,
              uintptr_t x, uintptr_t delta, uintptr_t weight, float epsilon, uintptr_t sum,
              uintptr_t inverse, uintptr_t out, int threads) {
    require_sizes(rows, columns, threads);
    require((delta == 0) == (sum == 0), "sum belongs to a delta, and only to one");
    const Norm norm{floating(type),    floating(out_type),    columns,
                    at<const void>(x), at<const void>(delta), at<const float>(weight),
                    epsilon,           at<void>(sum),         at<float>(inverse),
                    at<void>(out)};
    const py::gil_scoped_release release;
    norm_rows(norm, rows, threads);
}

void rms_norm_gradient(int64_t rows, int64_t columns, const std::string& type,
                       const std::string& grad_type, uintptr_t grad, uintptr_t x, uintptr_t weight,
                       uintptr_t inverse, uintptr_t beside, uintptr_t out, int threads) {
    require_sizes(rows, columns, threads);
    const NormGradient gradient{
        floating(type),           floating(grad_type),    columns,
        at<const void>(grad),     at<const void>(x),      at<const float>(weight),
        at<const float>(inverse), at<const void>(beside), at<void>(out)};
    const py::gil_scoped_release release;
    norm_gradient_rows(gradient, rows, threads);
}

void gated(int64_t values, const std::string& type, bool gelu, uintptr_t gate, uintptr_t up,
           uintptr_t out, int threads) {
    require_sizes(values, 1, threads);
    const Gated call{
        floating(type), gelu,   at<const void>(gate), at<const void>(up), nullptr, at<void>(out),
        nullptr,        nullptr};
    const py::gil_scoped_release release;
    gate_values(call, values, threads);
}

void gated_gradient(int64_t values, const std::string& type, bool gelu, uintptr_t gate,
                    uintptr_t up, uintptr_t grad, uintptr_t grad_gate, uintptr_t grad_up,
                    int threads) {
    require_sizes(values, 1, threads);
    require(grad != 0 || values == 0, "grad must not be a null address");
    const Gated call{floating(type),       gelu,    at<const void>(gate), at<const void>(up),
                     at<const void>(grad), nullptr, at<void>(grad_gate),  at<void>(grad_up)};
    const py::gil_scoped_release release;
    gate_values(call, values, threads);
}

void rotate(int64_t rows, int64_t heads, int64_t head_dim, const std::string& type,
            const std::string& out_type, bool transposed, uintptr_t x, uintptr_t cosines,
            uintptr_t sines, uintptr_t out, int threads) {
    require_sizes(rows, heads * head_dim, threads);
    require(head_dim % 2 == 0, "head_dim must be even, got " + std::to_string(head_dim));
    const Rotation call{floating(type),
                        floating(out_type),
                        transposed,
                        heads,
                        head_dim,
                        at<const void>(x),
                        at<const float>(cosines),
                        at<const float>(sines),
                        at<void>(out)};
    const py::gil_scoped_release release;
    rotate_rows(call, rows, threads);
}

}  // namespace

void define_elementwise(py::module_& module) {
    module.def("rms_norm", &rms_norm);
    module.def("rms_norm_gradient", &rms_norm_gradient);
    module.def("gated", &gated);
    module.def("gated_gradient", &gated_gradient);
    module.def("rotate", &rotate);
}

}  // namespace clara
