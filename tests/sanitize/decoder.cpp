#include "decoder.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/decoder/decoder.hpp"
#include "core/decoder/products.hpp"
#include "core/simd/kernels.hpp"
#include "matrix.hpp"

namespace clara_test {
namespace {

using clara::DataType;

constexpr DataType kTypes[] = {DataType::float32, DataType::float16, DataType::bfloat16,
                               DataType::int8};

/// A layer with all it needs, each in memory of its own that ends with it.
class Layer {
public:
    Layer(DataType type, int64_t outputs, int64_t inputs, int64_t rank, uint64_t seed)
        : weight_(type, outputs, inputs, seed, {3, 5}),
          scales_(DataType::float32, 1, outputs, seed + 1),
          bias_(DataType::float32, 1, outputs, seed + 2),
          down_(DataType::float32, rank, inputs, seed + 3),
          up_(DataType::float32, outputs, rank, seed + 4) {}

    clara::LinearLayer layer() const {
        const bool is_int8 = weight_.type() == DataType::int8;
        return {weight_.rows(), is_int8 ? floats(scales_) : nullptr,
                floats(bias_),  down_.rows(),
                up_.rows(),     0.5f};
    }

    double output(int64_t row, const float* input) const {
        double sum = 0;
        for (int64_t j = 0; j < weight_.columns(); ++j) sum += weight_.at(row, j) * input[j];
        if (weight_.type() == DataType::int8) sum *= scales_.at(0, row);
        for (int64_t r = 0; r < down_.count(); ++r) {
            double thin = 0;
            for (int64_t j = 0; j < weight_.columns(); ++j) thin += down_.at(r, j) * input[j];
            sum += 0.5 * up_.at(row, r) * thin;
        }
        return sum + bias_.at(0, row);
    }

private:
    static const float* floats(const Matrix& matrix) {
        return static_cast<const float*>(matrix.rows().data);
    }

    Matrix weight_, scales_, bias_, down_, up_;
};

void check_products(DataType type, int64_t count, int64_t outputs, int64_t inputs, int64_t rank) {
    const clara::Kernels& kernels = clara::kernels();
    const Layer made(type, outputs, inputs, rank, 7);
    const bool is_int8 = type == DataType::int8;
    const clara::RowTypes types{is_int8, type == DataType::bfloat16};
    clara::Inputs given(count, inputs, types, kernels);
    Random random(3);
    for (int64_t i = 0; i < count; ++i) {
        for (int64_t j = 0; j < inputs; ++j) given.row(i)[j] = random.value();
    }
    given.written();
    clara::Multiplier multiplier(count, rank, types, kernels);
    const double bound = (is_int8 ? 0.5 : 1e-5) * std::sqrt(static_cast<double>(inputs));
    const int64_t begin = outputs / 3;
    int64_t seen = 0;
    multiplier.apply(made.layer(), given, begin, outputs, [&](int64_t i, int64_t j, float value) {
        const double expected = made.output(j, given.row(i));
        if (!(std::abs(value - expected) <= bound)) {
            throw std::runtime_error("output " + std::to_string(j) + " of input " +
                                     std::to_string(i) + " is " + std::to_string(value) + ", not " +
                                     std::to_string(expected));
        }
        ++seen;
    });
    if (seen != count * (outputs - begin)) throw std::runtime_error("outputs are missing");
}

struct Model {
    static constexpr int64_t kHidden = 36, kHeads = 6, kKeyHeads = 2, kWidth = 10, kBetween = 45;
    static constexpr int64_t kWords = 83, kLayers = 2, kSequences = 5, kCapacity = 21;

    explicit Model(DataType type)
        : norms(DataType::float32, 1, kHidden, 1), head(type, kWords, kHidden, 3, 100) {
        const auto* norm = static_cast<const float*>(norms.rows().data);
        for (int64_t layer = 0; layer < kLayers; ++layer) {
            const int64_t wide = kHeads * kWidth, keys = kKeyHeads * kWidth;
            add(type, wide, kHidden);
            add(type, keys, kHidden);
            add(type, keys, kHidden);
            add(type, kHidden, wide);
            add(type, kBetween, kHidden);
            add(type, kBetween, kHidden);
            add(type, kHidden, kBetween);
            const auto of = [&](int64_t place) { return linears[layer * 7 + place]->layer(); };
            layers.push_back(
                {norm, of(0), of(1), of(2), of(3), norm, norm, norm, of(4), of(5), of(6)});
        }
        decoder = {kHeads, kKeyHeads, kWidth, 1e-5f, 0.3f, layers, norm, head.layer()};
    }

    void add(DataType type, int64_t outputs, int64_t inputs) {
        linears.push_back(std::make_unique<Layer>(type, outputs, inputs, 3, linears.size() * 5));
    }

    Matrix norms;
    Layer head;
    std::vector<std::unique_ptr<Layer>> linears;
    std::vector<clara::DecoderLayer> layers;
    clara::Decoder decoder;
};

std::vector<float> logits_by(const Model& model, int threads) {
    constexpr int64_t kCached =
        Model::kLayers * Model::kSequences * Model::kKeyHeads * Model::kCapacity * Model::kWidth;
    const float nan = std::numeric_limits<float>::quiet_NaN();
    std::vector<float> keys(kCached, nan), values(kCached, nan), all;
    std::vector<int64_t> lengths(Model::kSequences, 0);  // nothing is read behind them
    const clara::DecoderCache cache{keys.data(), values.data(), Model::kSequences,
                                    Model::kCapacity};
    Random random(11);
    const auto drawn = [&](int64_t count) {
        std::vector<float> made(count);
        for (float& value : made) value = random.value();
        return made;
    };
    for (int64_t step = 0; step < Model::kCapacity; ++step) {
        const std::vector<float> embeddings = drawn(Model::kSequences * Model::kHidden);
        const std::vector<float> cosines = drawn(Model::kSequences * Model::kWidth);
        const std::vector<float> sines = drawn(Model::kSequences * Model::kWidth);
        std::vector<float> logits(Model::kSequences * Model::kWords, nan);
        clara::decode(
            model.decoder, cache,
            {embeddings.data(), cosines.data(), sines.data(), lengths.data(), logits.data()},
            threads);
        all.insert(all.end(), logits.begin(), logits.end());
        for (int64_t& length : lengths) ++length;
    }
    return all;
}

}  // namespace

void products() {
    for (const DataType type : kTypes) {
        for (const int64_t count : {1, 2, 5, 7, 16}) {
            check_products(type, count, 37, 61, 3);
            check_products(type, count, 5, 1, 1);
        }
        check_products(type, 3, 70, 4500, 0);
        if (type == DataType::bfloat16) check_products(type, 18, 110, 1100, 5);
    }
}

void infinite_weights() {
    constexpr int64_t kCount = 9, kOutputs = 83, kInputs = 70;
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    const clara::Kernels& kernels = clara::kernels();
    Matrix weight(DataType::bfloat16, kOutputs, kInputs, 1);
    weight.put(41, 3, kInfinity);
    weight.put(42, 69, std::numeric_limits<float>::quiet_NaN());
    clara::Inputs given(kCount, kInputs, {false, true}, kernels);
    for (int64_t i = 0; i < kCount; ++i) {
        for (int64_t j = 0; j < kInputs; ++j) given.row(i)[j] = i % 2 == 0 ? 0.3f : -0.3f;
    }
    given.row(2)[7] = -kInfinity;
    given.written();
    clara::Multiplier multiplier(kCount, 0, {false, true}, kernels);
    multiplier.each(weight.rows(), given, [&](int64_t i, int64_t j, float value) {
        double expected = 0;
        for (int64_t c = 0; c < kInputs; ++c) expected += weight.at(j, c) * given.row(i)[c];
        const bool same = std::isnan(expected)   ? std::isnan(value)
                          : std::isinf(expected) ? value == expected
                                                 : std::abs(value - expected) < 1e-4;
        if (!same) {
            throw std::runtime_error("output " + std::to_string(j) + " of input " +
                                     std::to_string(i) + " is " + std::to_string(value) + ", not " +
                                     std::to_string(expected));
        }
    });
}

void decoder_steps() {
    for (const DataType type : kTypes) {
        const Model model(type);
        const std::vector<float> expected = logits_by(model, 1);
        for (const float value : expected) {
            if (!std::isfinite(value)) throw std::runtime_error("a logit is not finite");
        }
        for (const int threads : {2, 3, 7}) {
            if (logits_by(model, threads) != expected) {
                throw std::runtime_error(std::to_string(threads) + " threads give other logits");
            }
        }
    }
}

}  // namespace clara_test
