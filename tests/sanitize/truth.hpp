#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/cosine_topk.hpp"
#include "cosine.hpp"
#include "matrix.hpp"

namespace clara_test {

inline void expect(bool condition, const std::string& what) {
    if (!condition) throw std::runtime_error(what);
}

/// What a search wrote, [queries, width].
struct Found {
    int64_t width;
    std::vector<float> scores;
    std::vector<int64_t> rows;

    /// Both are overwritten if the search writes all that it has to.
    Found(int64_t queries, int64_t width)
        : width(width), scores(queries * width, 12345.0f), rows(queries * width, -77) {}
};

inline bool same(float a, float b) {
    return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof(a)) == 0;
}

/// Bit for bit.
inline void expect_same(const Found& found, const Found& expected, const std::string& what) {
    expect(found.width == expected.width && found.rows.size() == expected.rows.size(),
           what + ": results have another shape");
    for (size_t i = 0; i < found.rows.size(); ++i) {
        if (found.rows[i] == expected.rows[i] && same(found.scores[i], expected.scores[i])) {
            continue;
        }
        throw std::runtime_error(
            what + ": result " + std::to_string(i) + " of width " + std::to_string(found.width) +
            " is row " + std::to_string(found.rows[i]) + " with " +
            std::to_string(found.scores[i]) + ", not row " + std::to_string(expected.rows[i]) +
            " with " + std::to_string(expected.scores[i]));
    }
}

inline Found topk(const clara::Rows& queries, const clara::Searched& searched, const uint8_t* mask,
                  int64_t k, int threads) {
    Found found(queries.count, std::min(k, searched.rows.count));
    clara::cosine_topk(queries, searched, mask, k, threads, found.scores.data(), found.rows.data());
    return found;
}

/// The score of every row for every query, as one search for all of them gave it once it agreed
/// with float64. Every other search must give the same bits.
class Truth {
public:
    Truth(const Matrix& queries, const Matrix& corpus)
        : rows_(corpus.count()), scores_(queries.count() * corpus.count()) {
        const clara::Searched searched{corpus.rows(), nullptr};
        const Found found = topk(queries.rows(), searched, nullptr, rows_, 1);
        std::vector<std::vector<double>> values;
        for (int64_t row = 0; row < rows_; ++row) values.push_back(corpus.values(row));
        for (int64_t i = 0; i < queries.count(); ++i) {
            const std::vector<double> query = queries.values(i);
            std::vector<bool> seen(rows_);
            for (int64_t j = i * rows_; j < (i + 1) * rows_; ++j) {
                const int64_t row = found.rows[j];
                const float score = found.scores[j];
                expect(row >= 0 && row < rows_ && !seen[row], "a row is missing or found twice");
                seen[row] = true;
                check_score(score,
                            cosine(query, values[row], corpus.type() == clara::DataType::int8));
                scores_[i * rows_ + row] = score;
                const bool first = j == i * rows_;
                expect(first || better({found.scores[j - 1], found.rows[j - 1]}, {score, row}),
                       "results are out of order");
            }
        }
    }

    int64_t rows() const { return rows_; }

    /// What a search for `width` rows of candidates[i] for each query i must find.
    Found best(const std::vector<std::vector<int64_t>>& candidates, int64_t width) const {
        const auto queries = static_cast<int64_t>(candidates.size());
        Found best(queries, width);
        for (int64_t i = 0; i < queries; ++i) {
            std::vector<Scored> scored;
            for (const int64_t row : candidates[i]) {
                if (row >= 0 && row < rows_) scored.push_back({scores_[i * rows_ + row], row});
            }
            std::sort(scored.begin(), scored.end(), better);
            scored.resize(width, {-std::numeric_limits<float>::infinity(), -1});
            for (int64_t j = 0; j < width; ++j) {
                best.scores[i * width + j] = scored[j].score;
                best.rows[i * width + j] = scored[j].row;
            }
        }
        return best;
    }

    /// Rows of the mask, or all, for each query.
    Found best(int64_t queries, const uint8_t* mask, int64_t k) const {
        std::vector<int64_t> candidates;
        for (int64_t row = 0; row < rows_; ++row) {
            if (mask == nullptr || mask[row] != 0) candidates.push_back(row);
        }
        return best(std::vector<std::vector<int64_t>>(queries, candidates), std::min(k, rows_));
    }

private:
    struct Scored {
        float score;
        int64_t row;
    };

    static bool better(const Scored& a, const Scored& b) {
        if (std::isnan(a.score) != std::isnan(b.score)) return std::isnan(b.score);
        if (!std::isnan(a.score) && a.score != b.score) return a.score > b.score;
        return a.row < b.row;
    }

    static void check_score(float score, const Cosine& expected) {
        if (std::isnan(expected.value)) {
            expect(std::isnan(score), "a score is a number where it must be NaN");
            return;
        }
        expect(std::abs(score - expected.value) <= expected.bound && std::abs(score) <= 1,
               "a score is " + std::to_string(score) + ", not " + std::to_string(expected.value));
    }

    int64_t rows_;
    std::vector<float> scores_;  // [queries, rows]
};

}  // namespace clara_test
