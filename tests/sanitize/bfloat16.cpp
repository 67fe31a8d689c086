#include "bfloat16.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/attention/attention.hpp"
#include "core/linear/linear.hpp"
#include "matrix.hpp"

namespace clara_test {
namespace {

using clara::DataType;

constexpr DataType kType = DataType::bfloat16;

char* memory(const Matrix& matrix) {
    return static_cast<char*>(const_cast<void*>(matrix.rows().data));
}

double dot(const Matrix& one, int64_t i, int64_t from, const Matrix& other, int64_t j,
           int64_t other_from, int64_t count) {
    double sum = 0;
    for (int64_t at = 0; at < count; ++at) {
        sum += one.at(i, from + at) * other.at(j, other_from + at);
    }
    return sum;
}

void expect_near(double found, double expected, double scale, const char* what) {
    if (std::abs(found - expected) <= 0x1p-7 * scale) return;
    throw std::runtime_error(std::string(what) + " is " + std::to_string(found) + ", not " +
                             std::to_string(expected));
}

void check_linear(int64_t rows, int64_t inputs, int64_t outputs, int64_t rank, int threads) {
    const Matrix x(kType, rows, inputs, 1), weight(kType, outputs, inputs, 2);
    const Matrix bias(DataType::float32, 1, outputs, 3), out(kType, rows, outputs, 4);
    const Matrix down(kType, rank, inputs, 5), up(kType, outputs, rank, 6);
    const Matrix changes(kType, rows, rank, 7);
    constexpr float kScaling = 0.5;
    clara::adapted_linear({inputs, outputs, rank, memory(x), inputs, memory(weight),
                           reinterpret_cast<const float*>(memory(bias)), memory(down), memory(up),
                           kScaling, memory(out), outputs, memory(changes)},
                          rows, threads);
    for (int64_t i = 0; i < rows; ++i) {
        std::vector<double> hidden(rank);
        for (int64_t r = 0; r < rank; ++r) {
            hidden[r] = kScaling * dot(x, i, 0, down, r, 0, inputs);
            expect_near(changes.at(i, r), hidden[r], 1 + std::abs(hidden[r]), "a change");
        }
        for (int64_t j = 0; j < outputs; ++j) {
            double sum = dot(x, i, 0, weight, j, 0, inputs) + bias.at(0, j), size = 1;
            for (int64_t r = 0; r < rank; ++r) {
                sum += hidden[r] * up.at(j, r);
                size += std::abs(hidden[r] * up.at(j, r));
            }
            expect_near(out.at(i, j), sum, std::abs(sum) + size, "a value of a linear layer");
        }
    }
}

void check_gradient(int64_t rows, int64_t inputs, int64_t outputs, int64_t rank, int threads) {
    const Matrix grad(kType, rows, outputs, 1), weight(kType, outputs, inputs, 2);
    const Matrix down(kType, rank, inputs, 3), up(kType, outputs, rank, 4);
    const Matrix thin(kType, rows, rank, 5), out(kType, rows, inputs, 6);
    constexpr float kScaling = 0.5;
    clara::linear_gradient({inputs, outputs, rank, memory(grad), memory(weight), memory(down),
                            memory(up), kScaling, memory(thin), memory(out)},
                           rows, threads);
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t r = 0; r < rank; ++r) {
            double sum = 0;
            for (int64_t j = 0; j < outputs; ++j) sum += kScaling * grad.at(i, j) * up.at(j, r);
            expect_near(thin.at(i, r), sum, 1 + std::abs(sum), "a thin gradient");
        }
        for (int64_t c = 0; c < inputs; ++c) {
            double sum = 0;
            for (int64_t j = 0; j < outputs; ++j) sum += grad.at(i, j) * weight.at(j, c);
            for (int64_t r = 0; r < rank; ++r) sum += thin.at(i, r) * down.at(r, c);
            expect_near(out.at(i, c), sum, 1 + std::abs(sum), "a gradient of an input");
        }
    }
}

/// The sizes of heads.
struct Heads {
    int64_t shared, kv, width;
};

void check_attention(const std::vector<int64_t>& lengths, int64_t most_queries, const Heads& sizes,
                     int64_t window, int threads) {
    std::vector<clara::AttendedDocument> documents;
    int64_t queries = 0, rows = 0;
    for (const int64_t length : lengths) {
        documents.push_back({queries, std::min(length, most_queries), rows, length});
        queries += documents.back().queries;
        rows += length;
    }
    const int64_t heads = sizes.shared * sizes.kv, width = sizes.width;
    const Matrix q(kType, queries, heads * width, 1), k(kType, rows, sizes.kv * width, 2);
    const Matrix v(kType, rows, sizes.kv * width, 3), out(kType, queries, heads * width, 4);
    const Matrix lse(DataType::float32, queries, heads, 5);
    clara::packed_attention({heads, sizes.kv, width, memory(q), memory(k), memory(v), 0.7f, window,
                             memory(out), reinterpret_cast<float*>(memory(lse))},
                            documents, threads);
    for (const clara::AttendedDocument& each : documents) {
        for (int64_t i = 0; i < each.queries; ++i) {
            const int64_t query = each.first_query + i, last = each.rows - each.queries + i;
            const int64_t first = window > 0 ? std::max<int64_t>(0, last - window + 1) : 0;
            for (int64_t h = 0; h < heads; ++h) {
                const int64_t from = h / sizes.shared * width;
                std::vector<double> weights;
                double sum = 0;
                for (int64_t j = first; j <= last; ++j) {
                    const int64_t key = each.first_row + j;
                    const double score = dot(q, query, h * width, k, key, from, width);
                    weights.push_back(std::exp(0.7 * score));
                    sum += weights.back();
                }
                expect_near(lse.at(query, h), std::log(sum), 1, "the log of a sum");
                for (int64_t at = 0; at < width; ++at) {
                    double value = 0;
                    for (int64_t j = first; j <= last; ++j) {
                        value += weights[j - first] / sum * v.at(each.first_row + j, from + at);
                    }
                    expect_near(out.at(query, h * width + at), value, 1, "a value of attention");
                }
            }
        }
    }
}

}  // namespace

void bfloat16() {
    if (clara::multiplies_bfloat16()) {
        for (const int64_t rows : {1, 8, 9, 36, 65}) {
            check_linear(rows, 2, 1, 0, 1);
            check_linear(rows, 66, 49, 6, 1);
            check_linear(rows, 34, 7, 50, 1);
        }
        check_linear(150, 1536, 60, 16, 1);
        check_linear(260, 64, 100, 16, 2);
        check_linear(40, 600, 500, 16, 3);
        check_linear(0, 8, 4, 2, 1);
        for (const int64_t rows : {1, 6, 25}) {
            check_gradient(rows, 2, 2, 0, 1);
            check_gradient(rows, 70, 48, 6, 1);
            check_gradient(rows, 34, 10, 80, 1);
        }
        check_gradient(200, 130, 96, 16, 3);
    }
    if (clara::attends_bfloat16()) {
        const std::vector<int64_t> lengths{1, 2, 33, 64, 70, 0};
        for (const int64_t window : {0, 1, 7, 40}) {
            check_attention(lengths, 100, {3, 2, 16}, window, 1);
            check_attention(lengths, 5, {1, 1, 48}, window, 1);
        }
        check_attention({150, 3, 140}, 200, {3, 3, 64}, 0, 3);
    }
}

}  // namespace clara_test
