#include "bfloat16.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
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

void check_thin(int64_t rows, int64_t columns, int64_t rank, bool transposed, int threads) {
    const Matrix wide(kType, rows, columns, 1), thin(kType, rows, rank, 2);
    const Matrix out(DataType::float32, transposed ? columns : rank, transposed ? rank : columns,
                     3);
    clara::thin_product({rows, columns, rank, memory(wide), memory(thin), transposed,
                         reinterpret_cast<float*>(memory(out))},
                        threads);
    for (int64_t r = 0; r < rank; ++r) {
        for (int64_t c = 0; c < columns; ++c) {
            double sum = 0;
            for (int64_t i = 0; i < rows; ++i) sum += thin.at(i, r) * wide.at(i, c);
            const double found = transposed ? out.at(c, r) : out.at(r, c);
            expect_near(found, sum, 1 + std::abs(sum), "a gradient of an adapter");
        }
    }
}

/// The sizes of heads.
struct Heads {
    int64_t shared, kv, width;
};

/// Random documents, and how they see each other.
struct AttentionCase {
    std::vector<clara::AttendedDocument> documents;
    Heads sizes;
    int64_t window;
    Matrix q, k, v;

    AttentionCase(const std::vector<int64_t>& lengths, int64_t most_queries, const Heads& sizes,
                  int64_t window)
        : documents(documents_of(lengths, most_queries)),
          sizes(sizes),
          window(window),
          q(kType, queries(), heads() * sizes.width, 1),
          k(kType, rows(), sizes.kv * sizes.width, 2),
          v(kType, rows(), sizes.kv * sizes.width, 3) {}

    static std::vector<clara::AttendedDocument> documents_of(const std::vector<int64_t>& lengths,
                                                             int64_t most_queries) {
        std::vector<clara::AttendedDocument> found;
        int64_t queries = 0, rows = 0;
        for (const int64_t length : lengths) {
            found.push_back({queries, std::min(length, most_queries), rows, length});
            queries += found.back().queries;
            rows += length;
        }
        return found;
    }

    int64_t heads() const { return sizes.shared * sizes.kv; }
    int64_t queries() const { return documents.back().first_query + documents.back().queries; }
    int64_t rows() const { return documents.back().first_row + documents.back().rows; }

    clara::AttentionInputs inputs() const {
        return {heads(), sizes.kv, sizes.width, memory(q), memory(k), memory(v), kScale, window};
    }

    /// The rows of keys that the i-th query of a document sees: from the first to the last one.
    std::pair<int64_t, int64_t> seen(const clara::AttendedDocument& document, int64_t i) const {
        const int64_t last = document.rows - document.queries + i;
        const int64_t first = window > 0 ? std::max<int64_t>(0, last - window + 1) : 0;
        return {document.first_row + first, document.first_row + last};
    }

    static constexpr float kScale = 0.7;
};

/// What one head of a query gives to the keys that it sees, and the log of its softmax's sum.
struct QueryWeights {
    std::vector<double> values;
    double log_sum;

    QueryWeights(const AttentionCase& given, int64_t query, int64_t head,
                 std::pair<int64_t, int64_t> seen) {
        const int64_t width = given.sizes.width, from = head / given.sizes.shared * width;
        double sum = 0;
        for (int64_t j = seen.first; j <= seen.second; ++j) {
            const double score = dot(given.q, query, head * width, given.k, j, from, width);
            values.push_back(std::exp(double{AttentionCase::kScale} * score));
            sum += values.back();
        }
        for (double& value : values) value /= sum;
        log_sum = std::log(sum);
    }
};

void check_attention(const AttentionCase& given, int threads) {
    const int64_t width = given.sizes.width;
    const Matrix out(kType, given.queries(), given.heads() * width, 4);
    const Matrix lse(DataType::float32, given.queries(), given.heads(), 5);
    clara::packed_attention({given.inputs(), memory(out), reinterpret_cast<float*>(memory(lse))},
                            given.documents, threads);
    for (const clara::AttendedDocument& each : given.documents) {
        for (int64_t i = 0; i < each.queries; ++i) {
            const int64_t query = each.first_query + i;
            const auto seen = given.seen(each, i);
            for (int64_t h = 0; h < given.heads(); ++h) {
                const int64_t from = h / given.sizes.shared * width;
                const QueryWeights weights(given, query, h, seen);
                expect_near(lse.at(query, h), weights.log_sum, 1, "the log of a sum");
                for (int64_t at = 0; at < width; ++at) {
                    double value = 0;
                    for (int64_t j = seen.first; j <= seen.second; ++j) {
                        value += weights.values[j - seen.first] * given.v.at(j, from + at);
                    }
                    expect_near(out.at(query, h * width + at), value, 1, "a value of attention");
                }
            }
        }
    }
}

/// Gradients in float64, each `[rows, columns]` in a row.
struct AttentionGradients {
    std::vector<double> q, k, v;

    AttentionGradients(const AttentionCase& given, const Matrix& grad)
        : q(given.queries() * given.heads() * given.sizes.width),
          k(given.rows() * given.sizes.kv * given.sizes.width),
          v(k.size()) {
        for (const clara::AttendedDocument& each : given.documents) {
            for (int64_t i = 0; i < each.queries; ++i) {
                for (int64_t h = 0; h < given.heads(); ++h) {
                    add(given, grad, each.first_query + i, h, given.seen(each, i));
                }
            }
        }
    }

private:
    void add(const AttentionCase& given, const Matrix& grad, int64_t query, int64_t head,
             std::pair<int64_t, int64_t> seen) {
        const int64_t width = given.sizes.width, from = head / given.sizes.shared * width;
        const int64_t own = head * width;
        const QueryWeights weights(given, query, head, seen);
        std::vector<double> changes;
        double mean = 0;
        for (int64_t j = seen.first; j <= seen.second; ++j) {
            changes.push_back(dot(grad, query, own, given.v, j, from, width));
            mean += weights.values[j - seen.first] * changes.back();
        }
        for (int64_t j = seen.first; j <= seen.second; ++j) {
            const double weight = weights.values[j - seen.first];
            const double score = AttentionCase::kScale * weight * (changes[j - seen.first] - mean);
            for (int64_t at = 0; at < width; ++at) {
                const int64_t key = j * given.sizes.kv * width + from + at;
                q[query * given.heads() * width + own + at] += score * given.k.at(j, from + at);
                k[key] += score * given.q.at(query, own + at);
                v[key] += weight * grad.at(query, own + at);
            }
        }
    }
};

void check_attention_gradient(const AttentionCase& given, int threads) {
    const int64_t columns = given.heads() * given.sizes.width;
    const int64_t kv_columns = given.sizes.kv * given.sizes.width;
    const Matrix grad(kType, given.queries(), columns, 4), q(kType, given.queries(), columns, 5);
    const Matrix k(kType, given.rows(), kv_columns, 6), v(kType, given.rows(), kv_columns, 7);
    clara::packed_attention_gradient(
        {given.inputs(), memory(grad), memory(q), memory(k), memory(v)}, given.documents, threads);
    const AttentionGradients expected(given, grad);
    const auto check = [](const Matrix& found, const std::vector<double>& values, int64_t width,
                          const char* what) {
        for (int64_t i = 0; i < static_cast<int64_t>(values.size()); ++i) {
            expect_near(found.at(i / width, i % width), values[i], 1 + std::abs(values[i]), what);
        }
    };
    check(q, expected.q, columns, "a gradient of a query");
    check(k, expected.k, kv_columns, "a gradient of a key");
    check(v, expected.v, kv_columns, "a gradient of a value");
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
        for (const bool transposed : {false, true}) {
            check_thin(0, 6, 2, transposed, 1);
            check_thin(7, 70, 18, transposed, 1);
            check_thin(129, 34, 80, transposed, 1);
            check_thin(1100, 600, 16, transposed, 3);
        }
    }
    if (clara::attends_bfloat16()) {
        const std::vector<int64_t> lengths{1, 2, 33, 64, 70, 0};
        for (const int64_t window : {0, 1, 7, 40}) {
            for (const AttentionCase& given : {AttentionCase(lengths, 100, {3, 2, 16}, window),
                                               AttentionCase(lengths, 5, {1, 1, 48}, window)}) {
                check_attention(given, 1);
                check_attention_gradient(given, 1);
            }
        }
        const AttentionCase long_ones({150, 3, 140}, 200, {3, 3, 64}, 0);
        check_attention(long_ones, 3);
        check_attention_gradient(long_ones, 3);
    }
}

}  // namespace clara_test
