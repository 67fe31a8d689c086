#include "core/decoder/decoder.hpp"

#include <algorithm>
#include <cmath>
#include <memory>

#include "core/decoder/team.hpp"
#include "core/parallel.hpp"

namespace clara {
namespace {

/// A member's share of `count`, in multiples of rows that every kernel likes.
struct Share {
    int64_t begin, end;

    Share(int64_t count, const Member& member) {
        constexpr int64_t kRows = 16;
        const int64_t tiles = (count + kRows - 1) / kRows;
        begin = std::min(count, tiles * member.number / member.members * kRows);
        end = std::min(count, tiles * (member.number + 1) / member.members * kRows);
    }
};

/// Calls visit(layer) for every linear layer.
template <class Visit>
void each_linear(const Decoder& decoder, Visit visit) {
    visit(decoder.head);
    for (const DecoderLayer& layer : decoder.layers) {
        for (const LinearLayer* each : {&layer.query, &layer.key, &layer.value, &layer.output,
                                        &layer.gate, &layer.up, &layer.down}) {
            visit(*each);
        }
    }
}

RowTypes row_types(const Decoder& decoder) {
    RowTypes types{};
    each_linear(decoder, [&](const LinearLayer& each) {
        types.int8 |= each.weight.type == DataType::int8;
        for (const Rows* rows : {&each.weight, &each.down, &each.up}) {
            types.bfloat16 |= rows->type == DataType::bfloat16 && rows->count > 0;
        }
    });
    return types;
}

int64_t highest_rank(const Decoder& decoder) {
    int64_t rank = 0;
    each_linear(decoder, [&](const LinearLayer& each) { rank = std::max(rank, each.down.count); });
    return rank;
}

/// Multiplications of a layer's phases, of which there are four that read weights.
double phase_products(const Decoder& decoder) {
    const auto state = static_cast<double>(decoder.hidden());
    const double attention = 2.0 * static_cast<double>(decoder.attended() + decoder.key_width());
    return state * (attention + 3.0 * static_cast<double>(decoder.intermediate())) / 4;
}

/// What all members read and write. Between two barriers a place is written by one of them.
struct Shared {
    Shared(const Decoder& decoder, const DecoderStep& step, int64_t sequences)
        : states(step.embeddings, step.embeddings + sequences * decoder.hidden()),
          queries(sequences * decoder.attended()),
          keys(sequences * decoder.key_width()),
          values(sequences * decoder.key_width()),
          attended(sequences * decoder.attended()),
          gated(sequences * decoder.intermediate()) {}

    std::vector<float> states;  // [sequences, hidden]
    std::vector<float> queries, keys, values;
    std::vector<float> attended;
    std::vector<float> gated;  // [sequences, intermediate]
};

/// What one thread does in a step, with memory of its own.
class Worker {
public:
    Worker(const Decoder& decoder, const DecoderCache& cache, const DecoderStep& step,
           Shared& shared, const Kernels& kernels, RowTypes types, int64_t rank)
        : decoder_(decoder),
          cache_(cache),
          step_(step),
          shared_(shared),
          kernels_(kernels),
          hidden_(cache.sequences, decoder.hidden(), types, kernels),
          attended_(cache.sequences, decoder.attended(), types, kernels),
          gated_(cache.sequences, decoder.intermediate(), types, kernels),
          multiplier_(cache.sequences, rank, types, kernels),
          head_queries_(decoder.heads / decoder.key_heads, decoder.head_dim, {}, kernels),
          weights_(decoder.heads / decoder.key_heads, cache.capacity, {}, kernels),
          attention_(decoder.heads / decoder.key_heads, 0, {}, kernels) {}

    void run(const Member& member) {
        for (int64_t layer = 0; layer < static_cast<int64_t>(decoder_.layers.size()); ++layer) {
            const DecoderLayer& weights = decoder_.layers[layer];
            project(weights, member);
            member.barrier.wait();
            attend(weights, layer, member);
            member.barrier.wait();
            read(shared_.attended, attended_);
            add(weights.output, attended_, member);
            member.barrier.wait();
            gate(weights, member);
            member.barrier.wait();
            read(shared_.gated, gated_);
            add(weights.down, gated_, member);
            member.barrier.wait();
        }
        normalise(decoder_.final_norm);
        store(decoder_.head, hidden_, step_.logits, member);
    }

private:
    /// The states, normalised: the inputs of this thread's products.
    void normalise(const float* norm) {
        const int64_t width = decoder_.hidden();
        for (int64_t i = 0; i < cache_.sequences; ++i) {
            normalise(shared_.states.data() + i * width, norm, width, hidden_.row(i));
        }
        hidden_.written();
    }

    void normalise(const float* from, const float* norm, int64_t width, float* to) const {
        const auto squares = kernels_.squares[static_cast<int>(DataType::float32)];
        const float sum = squares(reinterpret_cast<const char*>(from), width);
        const float inverse = 1 / std::sqrt(sum / static_cast<float>(width) + decoder_.epsilon);
        for (int64_t j = 0; j < width; ++j) to[j] = from[j] * inverse * norm[j];
    }

    static void read(const std::vector<float>& from, Inputs& to) {
        for (int64_t i = 0; i < to.count(); ++i) {
            std::copy_n(from.data() + i * to.columns(), to.columns(), to.row(i));
        }
        to.written();
    }

    void store(const LinearLayer& layer, const Inputs& inputs, float* to, const Member& member) {
        const Share share(layer.weight.count, member);
        const int64_t width = layer.weight.count;
        multiplier_.apply(layer, inputs, share.begin, share.end,
                          [=](int64_t i, int64_t j, float value) { to[i * width + j] = value; });
    }

    void add(const LinearLayer& layer, const Inputs& inputs, const Member& member) {
        const Share share(layer.weight.count, member);
        const int64_t width = layer.weight.count;
        float* to = shared_.states.data();
        multiplier_.apply(layer, inputs, share.begin, share.end,
                          [=](int64_t i, int64_t j, float value) { to[i * width + j] += value; });
    }

    void project(const DecoderLayer& weights, const Member& member) {
        normalise(weights.attention_norm);
        store(weights.query, hidden_, shared_.queries.data(), member);
        store(weights.key, hidden_, shared_.keys.data(), member);
        store(weights.value, hidden_, shared_.values.data(), member);
    }

    void gate(const DecoderLayer& weights, const Member& member) {
        normalise(weights.network_norm);
        const int64_t width = decoder_.intermediate();
        store(weights.gate, hidden_, shared_.gated.data(), member);
        float* to = shared_.gated.data();
        const Share share(width, member);
        multiplier_.apply(weights.up, hidden_, share.begin, share.end,
                          [=](int64_t i, int64_t j, float value) {
                              float& place = to[i * width + j];
                              place *= value / (1 + std::exp(-place));
                          });
    }

    /// Attention of the heads that share keys, which are a member's unit of work.
    void attend(const DecoderLayer& weights, int64_t layer, const Member& member) {
        const int64_t units = cache_.sequences * decoder_.key_heads;
        for (int64_t unit = units * member.number / member.members;
             unit < units * (member.number + 1) / member.members; ++unit) {
            attend(weights, layer, unit / decoder_.key_heads, unit % decoder_.key_heads);
        }
    }

    void attend(const DecoderLayer& weights, int64_t layer, int64_t sequence, int64_t key_head) {
        const int64_t width = decoder_.head_dim, group = decoder_.heads / decoder_.key_heads;
        const int64_t unit = (layer * cache_.sequences + sequence) * decoder_.key_heads + key_head;
        float* keys = cache_.keys + unit * cache_.capacity * width;
        float* values = cache_.values + unit * cache_.capacity * width;
        const int64_t place = step_.lengths[sequence], length = place + 1;

        const int64_t own = (sequence * decoder_.key_heads + key_head) * width;
        rotate(shared_.keys.data() + own, weights.key_norm, sequence, 1, keys + place * width);
        for (int64_t j = 0; j < width; ++j) {
            values[j * cache_.capacity + place] = shared_.values[own + j];
        }
        const int64_t first = (sequence * decoder_.heads + key_head * group) * width;
        for (int64_t i = 0; i < group; ++i) {
            rotate(shared_.queries.data() + first + i * width, weights.query_norm, sequence,
                   decoder_.score_scaling, head_queries_.row(i));
        }
        const Rows key_rows{keys, DataType::float32, length, width, width};
        attention_.each(key_rows, head_queries_,
                        [&](int64_t i, int64_t j, float value) { weights_.row(i)[j] = value; });
        for (int64_t i = 0; i < group; ++i) softmax(weights_.row(i), length);
        const Rows value_rows{values, DataType::float32, width, length, cache_.capacity};
        float* to = shared_.attended.data() + first;
        attention_.each(value_rows, weights_,
                        [&](int64_t i, int64_t j, float value) { to[i * width + j] = value; });
    }

    /// Rotates the halves of a head against each other; `norm` is applied before, or null.
    void rotate(float* head, const float* norm, int64_t sequence, float scaling, float* to) const {
        const int64_t width = decoder_.head_dim, half = width / 2;
        if (norm != nullptr) normalise(head, norm, width, head);
        const float* cosines = step_.cosines + sequence * width;
        const float* sines = step_.sines + sequence * width;
        for (int64_t j = 0; j < half; ++j) {
            const float a = head[j], b = head[j + half];
            to[j] = scaling * (a * cosines[j] - b * sines[j]);
            to[j + half] = scaling * (b * cosines[j + half] + a * sines[j + half]);
        }
    }

    /// In place; what a tile kernel reads behind the last weight is set to zero. So are weights
    /// that change nothing: numbers below the normal ones would make the products many times as
    /// slow.
    static void softmax(float* scores, int64_t count) {
        constexpr float kNothing = -80;
        const float largest = *std::max_element(scores, scores + count);
        float total = 0;
        for (int64_t j = 0; j < count; ++j) {
            const float difference = scores[j] - largest;
            scores[j] = difference < kNothing ? 0 : std::exp(difference);
            total += scores[j];
        }
        const float share = 1 / total;
        for (int64_t j = 0; j < count; ++j) scores[j] *= share;
        std::fill_n(scores + count, kCacheLine / sizeof(float), 0.0f);
    }

    const Decoder& decoder_;
    const DecoderCache& cache_;
    const DecoderStep& step_;
    Shared& shared_;
    const Kernels& kernels_;
    Inputs hidden_, attended_, gated_;
    Multiplier multiplier_;
    Inputs head_queries_;  // of the heads that share keys
    Inputs weights_;       // of the softmax
    Multiplier attention_;
};

}  // namespace

int useful_threads(const Decoder& decoder, int threads) {
    return useful_threads(phase_products(decoder), decoder.hidden() / kTileRows, threads);
}

void decode(const Decoder& decoder, const DecoderCache& cache, const DecoderStep& step,
            int threads) {
    const Kernels& used = kernels();
    Shared shared(decoder, step, cache.sequences);
    const RowTypes types = row_types(decoder);
    const int64_t rank = highest_rank(decoder);
    std::vector<std::unique_ptr<Worker>> workers;
    workers.reserve(threads);
    for (int i = 0; i < threads; ++i) {
        workers.push_back(
            std::make_unique<Worker>(decoder, cache, step, shared, used, types, rank));
    }
    run_team(threads, [&](const Member& member) { workers[member.number]->run(member); });
}

}  // namespace clara
