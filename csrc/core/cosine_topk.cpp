#include "core/cosine_topk.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/parallel.hpp"

namespace clara {
namespace {

struct Candidate {
    float score;
    int64_t row;
};

bool better(const Candidate& a, const Candidate& b) {
    const bool a_is_nan = std::isnan(a.score);
    const bool b_is_nan = std::isnan(b.score);
    if (a_is_nan != b_is_nan) return b_is_nan;
    if (!a_is_nan && a.score != b.score) return a.score > b.score;
    return a.row < b.row;
}

/// The best `capacity` candidates offered so far: a heap with the worst of them in front.
class TopK {
public:
    explicit TopK(int64_t capacity) : capacity_(capacity) {}

    void offer(const Candidate& candidate) {
        if (static_cast<int64_t>(heap_.size()) < capacity_) {
            heap_.push_back(candidate);
            std::push_heap(heap_.begin(), heap_.end(), better);
        } else if (better(candidate, heap_.front())) {
            std::pop_heap(heap_.begin(), heap_.end(), better);
            heap_.back() = candidate;
            std::push_heap(heap_.begin(), heap_.end(), better);
        }
    }

    const std::vector<Candidate>& candidates() const { return heap_; }

private:
    int64_t capacity_;
    std::vector<Candidate> heap_;
};

double dot(const float* a, const float* b, int64_t size) {
    constexpr int64_t kLanes = 8;  // independent sums, which the compiler may keep in vectors
    double lanes[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
        for (int64_t lane = 0; lane < kLanes; ++lane) {
            lanes[lane] += static_cast<double>(a[i + lane]) * b[i + lane];
        }
    }
    for (int64_t lane = 0; i < size; ++i, ++lane) lanes[lane] += static_cast<double>(a[i]) * b[i];

    double sum = 0;
    for (const double lane : lanes) sum += lane;
    return sum;
}

float cosine(double product, double norm_a, double norm_b) {
    const double norms = norm_a * norm_b;
    return norms == 0 ? 0.0f : static_cast<float>(product / norms);
}

struct Queries {
    explicit Queries(const Rows& rows) : columns(rows.columns) {
        values.resize(rows.count * columns);
        norms.resize(rows.count);
        for (int64_t i = 0; i < rows.count; ++i) {
            float* query = values.data() + i * columns;
            load_row(rows, i, query);
            norms[i] = std::sqrt(dot(query, query, columns));
        }
    }

    int64_t columns;
    std::vector<float> values;  // [B, D]
    std::vector<double> norms;  // [B]
};

/// Offers rows [begin, end) of the corpus to each query's `best`.
void scan(const Queries& queries, const Rows& corpus, int64_t begin, int64_t end,
          std::vector<TopK>& best) {
    std::vector<float> row(corpus.columns);
    for (int64_t i = begin; i < end; ++i) {
        load_row(corpus, i, row.data());
        const double norm = std::sqrt(dot(row.data(), row.data(), corpus.columns));
        for (size_t q = 0; q < best.size(); ++q) {
            const float* query = queries.values.data() + q * queries.columns;
            const double product = dot(query, row.data(), corpus.columns);
            best[q].offer({cosine(product, queries.norms[q], norm), i});
        }
    }
}

/// As many threads as have enough to do, at least one.
int useful_threads(const Rows& queries, const Rows& corpus, int threads) {
    constexpr double kProductsPerThread = 1 << 17;  // below this a thread costs more than it saves
    const double products =
        static_cast<double>(queries.count) * corpus.count * static_cast<double>(corpus.columns);
    const double useful = std::min<double>(products / kProductsPerThread, corpus.count);
    return std::max(1, static_cast<int>(std::min<double>(threads, useful)));
}

}  // namespace

void cosine_topk(const Rows& queries, const Rows& corpus, int64_t k, int threads, float* scores,
                 int64_t* indices) {
    const int64_t width = std::min(k, corpus.count);
    if (queries.count == 0 || width == 0) return;

    const Queries loaded(queries);
    const int parts = useful_threads(queries, corpus, threads);
    std::vector<std::vector<TopK>> best(parts, std::vector<TopK>(queries.count, TopK(width)));
    for_each_part(corpus.count, parts, [&](int part, int64_t begin, int64_t end) {
        scan(loaded, corpus, begin, end, best[part]);
    });

    std::vector<Candidate> merged;
    for (int64_t q = 0; q < queries.count; ++q) {
        merged.clear();
        for (const std::vector<TopK>& part : best) {
            const std::vector<Candidate>& found = part[q].candidates();
            merged.insert(merged.end(), found.begin(), found.end());
        }
        std::partial_sort(merged.begin(), merged.begin() + width, merged.end(), better);
        for (int64_t j = 0; j < width; ++j) {
            scores[q * width + j] = merged[j].score;
            indices[q * width + j] = merged[j].row;
        }
    }
}

}  // namespace clara
