// The Python face of the library; only this file and the other three of bindings know Python.
// Memory comes in as addresses and sizes, so that nothing here depends on the tensor library of the
// caller.

#include "bindings.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "core/cosine_topk.hpp"
#include "core/inverse_norms.hpp"
#include "core/rows.hpp"
#include "core/shared_team.hpp"
#include "core/simd/kernels.hpp"

#ifdef CLARA_CUDA
#include "cuda/cosine_topk.hpp"
#include "cuda/device_code.hpp"
#endif

namespace py = pybind11;

namespace {

using clara::require;

clara::DataType parse_type(const std::string& name) {
    if (name == "float32") return clara::DataType::float32;
    if (name == "float16") return clara::DataType::float16;
    if (name == "bfloat16") return clara::DataType::bfloat16;
    if (name == "int8") return clara::DataType::int8;
    throw std::invalid_argument("type must be 'float32', 'float16', 'bfloat16' or 'int8', got '" +
                                name + "'");
}

clara::Rows make_rows(uintptr_t address, const std::string& type, int64_t count, int64_t columns,
                      int64_t stride) {
    require(count >= 0, "count must not be negative, got " + std::to_string(count));
    require(columns >= 0, "columns must not be negative, got " + std::to_string(columns));
    require(stride >= 0, "stride must not be negative, got " + std::to_string(stride));
    require(address != 0 || count == 0 || columns == 0,
            "address must not be null for " + std::to_string(count) + " rows");
    return {reinterpret_cast<const void*>(address), parse_type(type), count, columns, stride};
}

void require_search(const clara::Rows& queries, const clara::Rows& corpus, int64_t k, int threads) {
    require(queries.type != clara::DataType::int8, "queries must not be int8");
    require(queries.columns == corpus.columns,
            "corpus must have the queries' " + std::to_string(queries.columns) + " columns, got " +
                std::to_string(corpus.columns));
    require(k >= 1, "k must be at least 1, got " + std::to_string(k));
    require(threads >= 1, "threads must be at least 1, got " + std::to_string(threads));
}

clara::Searched searched(const clara::Rows& corpus, uintptr_t inverse_norms) {
    return {corpus, reinterpret_cast<const float*>(inverse_norms)};
}

void cosine_topk(const clara::Rows& queries, const clara::Rows& corpus, uintptr_t inverse_norms,
                 uintptr_t mask, int64_t k, int threads, uintptr_t scores, uintptr_t indices) {
    require_search(queries, corpus, k, threads);
    const bool empty = queries.count == 0 || corpus.count == 0;
    require(scores != 0 || empty, "scores must not be a null address");
    require(indices != 0 || empty, "indices must not be a null address");

    const py::gil_scoped_release release;
    clara::cosine_topk(queries, searched(corpus, inverse_norms),
                       reinterpret_cast<const uint8_t*>(mask), k, threads,
                       reinterpret_cast<float*>(scores), reinterpret_cast<int64_t*>(indices));
}

void cosine_rerank(const clara::Rows& queries, const clara::Rows& corpus, uintptr_t inverse_norms,
                   uintptr_t listed, uintptr_t offsets, int64_t k, int threads, uintptr_t scores,
                   uintptr_t indices) {
    require_search(queries, corpus, k, threads);
    require(offsets != 0, "offsets must not be a null address");
    require(scores != 0 || queries.count == 0, "scores must not be a null address");
    require(indices != 0 || queries.count == 0, "indices must not be a null address");

    const py::gil_scoped_release release;
    clara::cosine_rerank(queries, searched(corpus, inverse_norms),
                         reinterpret_cast<const int64_t*>(listed),
                         reinterpret_cast<const int32_t*>(offsets), k, threads,
                         reinterpret_cast<float*>(scores), reinterpret_cast<int64_t*>(indices));
}

void inverse_norms(const clara::Rows& rows, int threads, uintptr_t out) {
    require(threads >= 1, "threads must be at least 1, got " + std::to_string(threads));
    require(out != 0 || rows.count == 0, "out must not be a null address");

    const py::gil_scoped_release release;
    clara::inverse_norms(rows, threads, reinterpret_cast<float*>(out));
}

#ifdef CLARA_CUDA
clara::CudaRows on_device(const clara::Rows& rows) {
    return {rows.data, rows.type, rows.count, rows.columns, rows.stride};
}

void cuda_inverse_norms(const clara::Rows& rows, uintptr_t out, int device, uintptr_t stream) {
    const py::gil_scoped_release release;
    clara::cuda_inverse_norms(on_device(rows), reinterpret_cast<float*>(out), device,
                              reinterpret_cast<void*>(stream));
}

int64_t cuda_cosine_topk_workspace(const clara::Rows& queries, const clara::Rows& corpus, int64_t k,
                                   int device) {
    return clara::cuda_cosine_topk_workspace(on_device(queries), on_device(corpus), k, device);
}

void cuda_cosine_topk(const clara::Rows& queries, const clara::Rows& corpus,
                      uintptr_t inverse_norms, uintptr_t mask, int64_t k, uintptr_t scores,
                      uintptr_t indices, uintptr_t workspace, int64_t workspace_bytes, int device,
                      uintptr_t stream) {
    const py::gil_scoped_release release;
    clara::cuda_cosine_topk(
        on_device(queries), on_device(corpus), reinterpret_cast<const float*>(inverse_norms),
        reinterpret_cast<const uint8_t*>(mask), k, reinterpret_cast<float*>(scores),
        reinterpret_cast<int64_t*>(indices), reinterpret_cast<void*>(workspace), workspace_bytes,
        device, reinterpret_cast<void*>(stream));
}

int64_t cuda_cosine_rerank_workspace(const clara::Rows& queries, const clara::Rows& corpus,
                                     int64_t candidates, int64_t k, int device) {
    return clara::cuda_cosine_rerank_workspace(on_device(queries), on_device(corpus), candidates, k,
                                               device);
}

void cuda_cosine_rerank(const clara::Rows& queries, const clara::Rows& corpus,
                        uintptr_t inverse_norms, uintptr_t listed, int64_t candidates,
                        uintptr_t offsets, int64_t k, uintptr_t scores, uintptr_t indices,
                        uintptr_t workspace, int64_t workspace_bytes, int device,
                        uintptr_t stream) {
    const py::gil_scoped_release release;
    clara::cuda_cosine_rerank(
        on_device(queries), on_device(corpus), reinterpret_cast<const float*>(inverse_norms),
        reinterpret_cast<const int64_t*>(listed), candidates,
        reinterpret_cast<const int32_t*>(offsets), k, reinterpret_cast<float*>(scores),
        reinterpret_cast<int64_t*>(indices), reinterpret_cast<void*>(workspace), workspace_bytes,
        device, reinterpret_cast<void*>(stream));
}
#endif

std::string compiler() {
#if defined(__clang__)
    return "Clang " __clang_version__;
#elif defined(__GNUC__)
    return "GCC " __VERSION__;
#elif defined(_MSC_VER)
    return "MSVC " + std::to_string(_MSC_VER);
#else
    return "unknown";
#endif
}

py::dict build_info() {
    py::dict info;
    info["compiler"] = compiler();
    info["build_type"] = CLARA_BUILD_TYPE;
    std::vector<std::string> available;
    for (const clara::Kernels* each : clara::available_kernels()) available.push_back(each->name);
    info["simd_available"] = available;
    info["simd"] = clara::kernels().name;
    info["cuda"] = py::none();
#ifdef CLARA_CUDA
    py::dict cuda;
    cuda["version"] = clara::cuda_runtime_version();
    cuda["architectures"] = py::str(CLARA_CUDA_ARCHS).attr("split")(",");
    info["cuda"] = cuda;
#endif
    return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "Compiled operators of clara_kernels. Private: call the package's functions.";

    py::class_<clara::Rows>(module, "Rows", "A matrix in memory that the caller keeps alive.")
        .def(py::init(&make_rows), py::arg("address"), py::arg("type"), py::arg("count"),
             py::arg("columns"), py::arg("stride"));
    module.def("inverse_norms", &inverse_norms, py::arg("rows"), py::arg("threads"),
               py::arg("out"));
    module.def("cosine_topk", &cosine_topk, py::arg("queries"), py::arg("corpus"),
               py::arg("inverse_norms"), py::arg("mask"), py::arg("k"), py::arg("threads"),
               py::arg("scores"), py::arg("indices"));
    module.def("cosine_rerank", &cosine_rerank, py::arg("queries"), py::arg("corpus"),
               py::arg("inverse_norms"), py::arg("listed"), py::arg("offsets"), py::arg("k"),
               py::arg("threads"), py::arg("scores"), py::arg("indices"));
    clara::define_decoder(module);
    clara::define_elementwise(module);
    clara::define_bfloat16(module);
    module.def("build_info", &build_info);
    module.def("share_threads_of", &clara::share_threads_of, py::arg("library"));
    module.def("shares_threads", [] { return clara::shared_team() != nullptr; });
#ifdef CLARA_CUDA
    module.def("cuda_inverse_norms", &cuda_inverse_norms, py::arg("rows"), py::arg("out"),
               py::arg("device"), py::arg("stream"));
    module.def("cuda_cosine_topk_workspace", &cuda_cosine_topk_workspace, py::arg("queries"),
               py::arg("corpus"), py::arg("k"), py::arg("device"));
    module.def("cuda_cosine_topk", &cuda_cosine_topk, py::arg("queries"), py::arg("corpus"),
               py::arg("inverse_norms"), py::arg("mask"), py::arg("k"), py::arg("scores"),
               py::arg("indices"), py::arg("workspace"), py::arg("workspace_bytes"),
               py::arg("device"), py::arg("stream"));
    module.def("cuda_cosine_rerank_workspace", &cuda_cosine_rerank_workspace, py::arg("queries"),
               py::arg("corpus"), py::arg("candidates"), py::arg("k"), py::arg("device"));
    module.def("cuda_cosine_rerank", &cuda_cosine_rerank, py::arg("queries"), py::arg("corpus"),
               py::arg("inverse_norms"), py::arg("listed"), py::arg("candidates"),
               py::arg("offsets"), py::arg("k"), py::arg("scores"), py::arg("indices"),
               py::arg("workspace"), py::arg("workspace_bytes"), py::arg("device"),
               py::arg("stream"));
    module.def(
        "cuda_device_code",
        [](int device) {
            const clara::DeviceCode code = clara::cuda_device_code(device);
            return py::make_tuple(code.binary, code.ptx);
        },
        py::arg("device"));
#endif
}
