// The decoder, as Python sees it: weights that the caller keeps alive, and steps of one token.

#include <pybind11/stl.h>

#include <utility>
#include <vector>

#include "bindings.hpp"
#include "core/decoder/decoder.hpp"

namespace py = pybind11;

namespace clara {
namespace {

const float* floats(uintptr_t address) { return reinterpret_cast<const float*>(address); }

LinearLayer make_linear(const Rows& weight, uintptr_t row_scales, uintptr_t bias, const Rows& down,
                        const Rows& up, float scaling) {
    const bool is_int8 = weight.type == DataType::int8;
    require((row_scales != 0) == is_int8, "row_scales belong to an int8 weight, and only to one");
    require(down.count == up.columns, "down must have as many rows as up has columns");
    require(down.type != DataType::int8 && up.type != DataType::int8, "adapters must not be int8");
    if (down.count > 0) {
        require(down.columns == weight.columns, "down must have the weight's columns");
        require(up.count == weight.count, "up must have the weight's rows");
    }
    return {weight, floats(row_scales), floats(bias), down, up, scaling};
}

void require_shape(const char* name, const LinearLayer& layer, int64_t outputs, int64_t inputs) {
    require(layer.weight.count == outputs && layer.weight.columns == inputs,
            std::string(name) + " must be [" + std::to_string(outputs) + ", " +
                std::to_string(inputs) + "], got [" + std::to_string(layer.weight.count) + ", " +
                std::to_string(layer.weight.columns) + "]");
}

DecoderLayer make_layer(uintptr_t attention_norm, uintptr_t network_norm, uintptr_t query_norm,
                        uintptr_t key_norm, const std::vector<LinearLayer>& linears) {
    require(attention_norm != 0 && network_norm != 0, "norms must not be null addresses");
    require(linears.size() == 7, "a layer has 7 linear layers");
    return {floats(attention_norm),
            linears[0],
            linears[1],
            linears[2],
            linears[3],
            floats(query_norm),
            floats(key_norm),
            floats(network_norm),
            linears[4],
            linears[5],
            linears[6]};
}

Decoder make_decoder(int64_t heads, int64_t key_heads, int64_t head_dim, float epsilon,
                     float score_scaling, std::vector<DecoderLayer> layers, uintptr_t final_norm,
                     const LinearLayer& head) {
    require(head_dim >= 2 && head_dim % 2 == 0, "head_dim must be even");
    require(key_heads >= 1 && heads >= 1 && heads % key_heads == 0,
            "heads must be a multiple of key_heads");
    require(!layers.empty(), "layers must not be empty");
    require(final_norm != 0, "final_norm must not be a null address");
    Decoder decoder{heads,         key_heads,         head_dim,           epsilon,
                    score_scaling, std::move(layers), floats(final_norm), head};
    const int64_t hidden = decoder.hidden(), between = decoder.intermediate();
    for (const DecoderLayer& layer : decoder.layers) {
        require_shape("query", layer.query, decoder.attended(), hidden);
        require_shape("key", layer.key, decoder.key_width(), hidden);
        require_shape("value", layer.value, decoder.key_width(), hidden);
        require_shape("output", layer.output, hidden, decoder.attended());
        require_shape("gate", layer.gate, between, hidden);
        require_shape("up", layer.up, between, hidden);
        require_shape("down", layer.down, hidden, between);
    }
    return decoder;
}

void decode_step(const Decoder& decoder, uintptr_t keys, uintptr_t values, int64_t sequences,
                 int64_t capacity, uintptr_t embeddings, uintptr_t cosines, uintptr_t sines,
                 uintptr_t lengths, uintptr_t logits, int threads) {
    require(sequences >= 1, "sequences must be at least 1, got " + std::to_string(sequences));
    require(threads >= 1, "threads must be at least 1, got " + std::to_string(threads));
    for (const uintptr_t address : {keys, values, embeddings, cosines, sines, lengths, logits}) {
        require(address != 0, "addresses must not be null");
    }
    const auto* counts = reinterpret_cast<const int64_t*>(lengths);
    for (int64_t i = 0; i < sequences; ++i) {
        require(counts[i] >= 0 && counts[i] < capacity,
                "the cache holds " + std::to_string(capacity) + " tokens, sequence " +
                    std::to_string(i) + " has " + std::to_string(counts[i]) + " already");
    }
    const DecoderCache cache{reinterpret_cast<float*>(keys), reinterpret_cast<float*>(values),
                             sequences, capacity};
    const DecoderStep step{floats(embeddings), floats(cosines), floats(sines), counts,
                           reinterpret_cast<float*>(logits)};
    const py::gil_scoped_release release;
    decode(decoder, cache, step, useful_threads(decoder, threads));
}

}  // namespace

void define_decoder(py::module_& module) {
    py::class_<LinearLayer>(module, "Linear", "W x + b, and an adapter; see LinearLayer.")
        .def(py::init(&make_linear), py::arg("weight"), py::arg("row_scales"), py::arg("bias"),
             py::arg("down"), py::arg("up"), py::arg("scaling"));
    py::class_<DecoderLayer>(module, "DecoderLayer", "A layer of a decoder.")
        .def(py::init(&make_layer), py::arg("attention_norm"), py::arg("network_norm"),
             py::arg("query_norm"), py::arg("key_norm"), py::arg("linears"));
    py::class_<Decoder>(module, "Decoder", "A decoder, in memory that the caller keeps alive.")
        .def(py::init(&make_decoder), py::arg("heads"), py::arg("key_heads"), py::arg("head_dim"),
             py::arg("epsilon"), py::arg("score_scaling"), py::arg("layers"), py::arg("final_norm"),
             py::arg("head"));
    module.def("decode_step", &decode_step, py::arg("decoder"), py::arg("keys"), py::arg("values"),
               py::arg("sequences"), py::arg("capacity"), py::arg("embeddings"), py::arg("cosines"),
               py::arg("sines"), py::arg("lengths"), py::arg("logits"), py::arg("threads"));
}

}  // namespace clara
