#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace clara {

/// A score and its row, with the score as an integer that is ordered as results are: the higher the
/// better, and NaN below every number.
class Candidate {
public:
    Candidate(float score, int64_t row) : row_(row) {
        if (score != score) return;
        score += 0.0f;  // makes -0 and 0 the same
        int32_t bits = 0;
        std::memcpy(&bits, &score, sizeof(bits));
        order_ = bits >= 0 ? bits : bits ^ std::numeric_limits<int32_t>::max();
    }

    int64_t row() const { return row_; }

    float score() const {
        if (order_ == kNan) return std::numeric_limits<float>::quiet_NaN();
        const int32_t bits = order_ >= 0 ? order_ : order_ ^ std::numeric_limits<int32_t>::max();
        float score = 0;
        std::memcpy(&score, &bits, sizeof(score));
        return score;
    }

    /// The order of results: the highest score first, equal ones by row.
    static bool better(const Candidate& a, const Candidate& b) {
        return a.order_ != b.order_ ? a.order_ > b.order_ : a.row_ < b.row_;
    }

private:
    static constexpr int32_t kNan = std::numeric_limits<int32_t>::min();  // the bits of no number

    int64_t row_;
    int32_t order_ = kNan;
};

/// The best `capacity` candidates offered so far, in any order. More are kept until a good many can
/// be dropped at once, which takes constant time for each on average.
class TopList {
public:
    explicit TopList(int64_t capacity) : capacity_(capacity) {}

    void offer(const Candidate& candidate) {
        if (full_ && !Candidate::better(candidate, worst_)) return;
        candidates_.push_back(candidate);
        if (size() >= capacity_ + std::max<int64_t>(capacity_, 16)) drop();
    }

    /// No score below this can still enter.
    float threshold() const { return threshold_; }

    /// The best, without those that were kept beyond the capacity.
    const std::vector<Candidate>& best() {
        if (size() > capacity_) drop();
        return candidates_;
    }

private:
    int64_t size() const { return static_cast<int64_t>(candidates_.size()); }

    void drop() {
        const auto last = candidates_.begin() + (capacity_ - 1);
        std::nth_element(candidates_.begin(), last, candidates_.end(), Candidate::better);
        worst_ = *last;
        full_ = true;
        const float score = worst_.score();
        if (score == score) threshold_ = score;
        candidates_.erase(last + 1, candidates_.end());
    }

    int64_t capacity_;
    std::vector<Candidate> candidates_;
    Candidate worst_{0, 0};
    bool full_ = false;
    float threshold_ = -std::numeric_limits<float>::infinity();
};

/// Writes the best `width` candidates in order; score -inf and row -1 where there are fewer.
inline void write_best(std::vector<Candidate>& candidates, int64_t width, float* scores,
                       int64_t* rows) {
    const int64_t found = std::min(width, static_cast<int64_t>(candidates.size()));
    const auto end = candidates.begin() + found;
    if (end != candidates.end()) {
        std::nth_element(candidates.begin(), end, candidates.end(), Candidate::better);
    }
    std::sort(candidates.begin(), end, Candidate::better);
    for (int64_t j = 0; j < width; ++j) {
        scores[j] = j < found ? candidates[j].score() : -std::numeric_limits<float>::infinity();
        rows[j] = j < found ? candidates[j].row() : -1;
    }
}

}  // namespace clara
