#include "core/cosine_topk.hpp"

#include <algorithm>
#include <atomic>
#include <optional>
#include <vector>

#include "core/parallel.hpp"
#include "core/screen.hpp"

namespace clara {
namespace {

constexpr int64_t kGroupBytes = 64 << 20;  // most for packed queries
constexpr int64_t kGroupQueries = 256;
constexpr int64_t kSpanBytes = 1 << 20;  // of rows that a thread takes at a time
constexpr int64_t kLeastRows = 128;      // that a thread takes at a time
constexpr double kQueriesPerRead = 16;   // that a value is multiplied with while the next is read
constexpr double kElementsPerCandidate = 16;  // read in the time that one of a list takes to sort

/// Makes the four rows of each tile come from four places, each of which is then read in order, as
/// processors expect; four short rows next to each other would be read in leaps.
void interleave(RowBlock* block) {
    int64_t ordered[RowBlock::kMost];
    std::copy_n(block->rows, block->count, ordered);
    const int apart = block->count / kTileRows;
    for (int j = 0; j < block->count; ++j) {
        block->rows[j] = ordered[j % kTileRows * apart + j / kTileRows];
    }
}

/// The next rows of [*position, end) that may be found, as many as the scorer likes best.
void next_block(const Scorer& scorer, const uint8_t* mask, int64_t end, int64_t* position,
                RowBlock* block) {
    const int most = scorer.block_rows();
    block->count = 0;
    for (; *position < end && block->count < most; ++*position) {
        if (mask == nullptr || mask[*position] != 0) block->rows[block->count++] = *position;
    }
    if (block->count == most && !scorer.in_order()) interleave(block);
}

/// Scores rows [begin, end) for all queries of the scorer's group.
void scan(Scorer& scorer, const uint8_t* mask, int64_t begin, int64_t end,
          std::vector<TopList>& lists) {
    RowBlock blocks[2];
    int64_t position = begin;
    next_block(scorer, mask, end, &position, &blocks[0]);
    for (int current = 0; blocks[current].count > 0; current = 1 - current) {
        next_block(scorer, mask, end, &position, &blocks[1 - current]);
        scorer.score(blocks[current], blocks[1 - current], lists.data());
    }
}

struct Search {
    const Rows& queries;
    const Searched& searched;
    const uint8_t* mask;
    int64_t width;
    float* scores;
    int64_t* indices;
    const Kernels& used = kernels();

    /// Queries [begin, end) on `threads` threads, each of which takes rows as it gets on.
    void by_rows(int64_t begin, int64_t end, int threads) const {
        const PackedQueries packed(queries, begin, end, searched.rows.type, used, threads);
        const int64_t count = end - begin, rows = searched.rows.count;
        std::optional<RoundedQueries> rounded;
        if (RoundedQueries::useful(packed, searched.rows, width, threads, used)) {
            rounded.emplace(packed, *used.screen, threads);
        }
        const RoundedQueries* screened = rounded ? &*rounded : nullptr;
        const int64_t row_bytes = searched.rows.columns * item_size(searched.rows.type);
        const int64_t most = (rows + threads - 1) / threads;
        const int64_t some = std::max<int64_t>(kSpanBytes / std::max<int64_t>(row_bytes, 1), 1);
        const int64_t block =
            Scorer::block_rows(packed, screened, used.panels_of(searched.rows.type));
        const int64_t unit = (kLeastRows + block - 1) / block * block;
        const int64_t span = std::min(most, (some + unit - 1) / unit * unit);
        std::vector<std::vector<TopList>> lists(threads);
        std::atomic<int64_t> next{0};
        for_each_part(threads, threads, [&](int part, int64_t, int64_t) {
            lists[part].assign(count, TopList(width));
            Scorer scorer(packed, screened, searched, used, width);
            for (int64_t row = next.fetch_add(span); row < rows; row = next.fetch_add(span)) {
                scan(scorer, mask, row, std::min(rows, row + span), lists[part]);
            }
            scorer.finish(lists[part].data());
        });
        const double found = static_cast<double>(count) * threads * static_cast<double>(width);
        for_each_part(count, useful_threads(kElementsPerCandidate * found, count, threads),
                      [&](int, int64_t first, int64_t last) {
                          for (int64_t i = first; i < last; ++i) merge(begin + i, i, lists);
                      });
    }

    void merge(int64_t query, int64_t list, std::vector<std::vector<TopList>>& lists) const {
        std::vector<Candidate> all;
        for (std::vector<TopList>& part : lists) {
            const std::vector<Candidate>& best = part[list].best();
            all.insert(all.end(), best.begin(), best.end());
        }
        write_best(all, width, scores + query * width, indices + query * width);
    }
};

/// Queries that are packed together. Panels multiply kPanelQueries at once, or fewer in the same
/// time: their groups are full.
int64_t group_size(const Rows& queries, DataType row_type, const Kernels& kernels) {
    const int64_t bytes =
        std::max<int64_t>(queries.columns, 1) * PackedQueries::value_bytes(row_type, kernels);
    const int64_t fit = kGroupBytes / bytes;
    const int64_t unit = kernels.panels_of(row_type) != nullptr ? kPanelQueries : 1;
    return std::min(kGroupQueries, std::max<int64_t>(fit < unit ? fit : fit / unit * unit, 1));
}

}  // namespace

void cosine_topk(const Rows& queries, const Searched& searched, const uint8_t* mask, int64_t k,
                 int threads, float* scores, int64_t* indices) {
    const int64_t width = std::min(k, searched.rows.count), count = queries.count;
    if (count == 0 || width == 0) return;
    const Search search{queries, searched, mask, width, scores, indices};
    const double times = std::max(1.0, static_cast<double>(count) / kQueriesPerRead);
    const double elements = times * static_cast<double>(searched.rows.count) *
                            static_cast<double>(searched.rows.columns);
    const int parts = useful_threads(elements, std::max(count, searched.rows.count), threads);
    int64_t group = group_size(queries, searched.rows.type, search.used);
    if (searched.rows.count < int64_t{parts} * kLeastRows) {
        // Too few rows to share: threads take queries instead.
        group = std::min(group, (count + parts - 1) / parts);
        const int64_t groups = (count + group - 1) / group;
        for_each_part(groups, static_cast<int>(std::min<int64_t>(parts, groups)),
                      [&](int, int64_t first, int64_t last) {
                          for (int64_t g = first; g < last; ++g) {
                              search.by_rows(g * group, std::min(count, (g + 1) * group), 1);
                          }
                      });
        return;
    }
    for (int64_t begin = 0; begin < count; begin += group) {
        search.by_rows(begin, std::min(count, begin + group), parts);
    }
}

}  // namespace clara
