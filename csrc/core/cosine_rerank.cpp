#include <algorithm>
#include <atomic>
#include <mutex>
#include <vector>

#include "core/cosine_topk.hpp"
#include "core/parallel.hpp"

namespace clara {
namespace {

constexpr int64_t kSpan = 256;  // candidates that a thread takes at a time

/// Candidates [begin, end) of one query.
struct Task {
    int64_t query, begin, end;
};

std::vector<Task> tasks_of(const int32_t* offsets, int64_t queries) {
    std::vector<Task> tasks;
    for (int64_t i = 0; i < queries; ++i) {
        for (int64_t begin = offsets[i]; begin < offsets[i + 1]; begin += kSpan) {
            tasks.push_back({i, begin, std::min<int64_t>(begin + kSpan, offsets[i + 1])});
        }
    }
    return tasks;
}

struct Rerank {
    const Searched& searched;
    const int64_t* listed;

    void next_block(int64_t end, int most, int64_t* position, RowBlock* block) const {
        block->count = 0;
        for (; *position < end && block->count < most; ++*position) {
            const int64_t row = listed == nullptr ? *position : listed[*position];
            if (row >= 0 && row < searched.rows.count) block->rows[block->count++] = row;
        }
    }

    void run(const Task& task, const PackedQueries& query, const Kernels& used,
             TopList& list) const {
        Scorer scorer(query, searched, used);
        RowBlock blocks[2];
        int64_t position = task.begin;
        next_block(task.end, scorer.block_rows(), &position, &blocks[0]);
        for (int current = 0; blocks[current].count > 0; current = 1 - current) {
            next_block(task.end, scorer.block_rows(), &position, &blocks[1 - current]);
            scorer.score(blocks[current], blocks[1 - current], &list);
        }
    }
};

}  // namespace

void cosine_rerank(const Rows& queries, const Searched& searched, const int64_t* listed,
                   const int32_t* offsets, int64_t k, int threads, float* scores,
                   int64_t* indices) {
    const Kernels& used = kernels();
    const std::vector<Task> tasks = tasks_of(offsets, queries.count);
    std::vector<std::vector<Candidate>> found(queries.count);
    std::mutex found_mutex;
    const Rerank rerank{searched, listed};
    const auto count = static_cast<int64_t>(tasks.size());
    const double products = static_cast<double>(offsets[queries.count] - offsets[0]) *
                            static_cast<double>(searched.rows.columns);
    const int parts = useful_threads(products, count, threads);
    std::atomic<int64_t> next{0};
    for_each_part(parts, parts, [&](int, int64_t, int64_t) {
        for (int64_t t = next.fetch_add(1); t < count; t = next.fetch_add(1)) {
            const Task& task = tasks[t];
            const PackedQueries query(queries, task.query, task.query + 1, searched.rows.type, used,
                                      1);
            TopList list(k);
            rerank.run(task, query, used, list);
            const std::vector<Candidate>& best = list.best();
            const std::scoped_lock lock(found_mutex);
            std::vector<Candidate>& all = found[task.query];
            all.insert(all.end(), best.begin(), best.end());
        }
    });
    for (int64_t i = 0; i < queries.count; ++i) {
        write_best(found[i], k, scores + i * k, indices + i * k);
    }
}

}  // namespace clara
