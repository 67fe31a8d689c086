#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace clara {

struct Candidate {
    float score;
    int64_t row;
};

/// The order of results: the highest score first, equal ones by row; NaN after every number.
inline bool better(const Candidate& a, const Candidate& b) {
    const bool a_is_nan = std::isnan(a.score);
    const bool b_is_nan = std::isnan(b.score);
    if (a_is_nan != b_is_nan) return b_is_nan;
    if (!a_is_nan && a.score != b.score) return a.score > b.score;
    return a.row < b.row;
}

/// The best `capacity` candidates offered so far, in any order. More are kept until a good many can
/// be dropped at once, which takes constant time for each on average.
class TopList {
public:
    explicit TopList(int64_t capacity) : capacity_(capacity) {}

    void offer(const Candidate& candidate) {
        if (full_ && !better(candidate, worst_)) return;
        candidates_.push_back(candidate);
        if (static_cast<int64_t>(candidates_.size()) >=
            capacity_ + std::max<int64_t>(capacity_, 16))
            drop();
    }

    /// Nothing below this can still enter.
    float threshold() const { return threshold_; }

    /// The best, without those that were kept beyond the capacity.
    std::vector<Candidate>& best() {
        if (static_cast<int64_t>(candidates_.size()) > capacity_) drop();
        return candidates_;
    }

private:
    void drop() {
        const auto last = candidates_.begin() + (capacity_ - 1);
        std::nth_element(candidates_.begin(), last, candidates_.end(), better);
        worst_ = *last;
        full_ = true;
        if (!std::isnan(worst_.score)) threshold_ = worst_.score;
        candidates_.resize(capacity_);
    }

    int64_t capacity_;
    std::vector<Candidate> candidates_;
    Candidate worst_{};
    bool full_ = false;
    float threshold_ = -std::numeric_limits<float>::infinity();
};

/// Writes the best `width` candidates in order; score -inf and row -1 where there are fewer.
inline void write_best(std::vector<Candidate>& candidates, int64_t width, float* scores,
                       int64_t* rows) {
    const int64_t found = std::min<int64_t>(width, static_cast<int64_t>(candidates.size()));
    std::partial_sort(candidates.begin(), candidates.begin() + found, candidates.end(), better);
    for (int64_t j = 0; j < width; ++j) {
        scores[j] = j < found ? candidates[j].score : -std::numeric_limits<float>::infinity();
        rows[j] = j < found ? candidates[j].row : -1;
    }
}

}  // namespace clara
