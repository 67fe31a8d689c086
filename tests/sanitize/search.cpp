#include "search.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/cosine_topk.hpp"
#include "core/inverse_norms.hpp"
#include "matrix.hpp"
#include "page_end.hpp"
#include "truth.hpp"

namespace clara_test {
namespace {

using clara::DataType;

constexpr DataType kTypes[] = {DataType::float32, DataType::float16, DataType::bfloat16,
                               DataType::int8};
constexpr const char* kTypeNames[] = {"float32", "float16", "bfloat16", "int8"};

std::string name_of(const Matrix& queries, const Matrix& corpus) {
    return std::to_string(queries.count()) + " queries of " +
           kTypeNames[static_cast<int>(queries.type())] + " for " + std::to_string(corpus.count()) +
           " rows of " + std::to_string(corpus.columns()) + " " +
           kTypeNames[static_cast<int>(corpus.type())];
}

std::vector<float> inverse_norms(const Matrix& matrix, int threads) {
    std::vector<float> inverse(matrix.count(), 12345.0f);
    clara::inverse_norms(matrix.rows(), threads, inverse.data());
    return inverse;
}

/// About half of the rows, by bytes of any value but 0.
std::vector<uint8_t> random_mask(int64_t rows, uint64_t seed) {
    Random random(seed);
    std::vector<uint8_t> mask(rows);
    for (uint8_t& byte : mask) {
        byte = random.below(2) == 0 ? 0 : static_cast<uint8_t>(1 + random.below(255));
    }
    return mask;
}

void check_inverse_norms(const Matrix& matrix, const std::vector<float>& inverse) {
    for (int64_t i = 0; i < matrix.count(); ++i) {
        double squares = 0;
        for (const double value : matrix.values(i)) squares += value * value;
        const double norm = std::sqrt(squares);
        if (!std::isfinite(norm)) {
            expect(std::isnan(inverse[i]), "an inverse norm must be NaN");
        } else if (norm == 0) {
            expect(inverse[i] == 0, "the inverse norm of zeros must be 0");
        } else if (norm < 0x1p-80 || norm > 0x1p80) {
            expect(inverse[i] == clara::kExtreme, "an inverse norm must be kExtreme");
        } else {
            const auto roundings = static_cast<double>(std::min<int64_t>(matrix.columns(), 1024));
            expect(std::abs(inverse[i] * norm - 1) < (roundings / 4 + 8) * 0x1p-24,
                   "an inverse norm is off");
        }
    }
}

/// Lists of candidates, some empty, with repetitions and numbers that are no rows.
void check_rerank(const Truth& truth, const Matrix& queries, const clara::Searched& searched,
                  int64_t k, int threads, uint64_t seed, const std::string& what) {
    const int64_t rows = searched.rows.count;
    Random random(seed);
    std::vector<std::vector<int64_t>> candidates(queries.count()), ranges(queries.count());
    std::vector<int64_t> listed(3, rows);  // entries that belong to no query
    std::vector<int32_t> offsets{3};
    for (int64_t i = 0; i < queries.count(); ++i) {
        const int64_t length = i % 3 == 1 ? 0 : random.below(2 * rows + 40);
        for (int64_t j = 0; j < length; ++j) {
            int64_t row = random.below(rows + 2) - 1;
            if (random.below(50) == 0) row = std::numeric_limits<int64_t>::max();
            if (random.below(50) == 0) row = std::numeric_limits<int64_t>::min();
            candidates[i].push_back(row);
            ranges[i].push_back(static_cast<int64_t>(listed.size()));
            listed.push_back(row);
        }
        offsets.push_back(static_cast<int32_t>(listed.size()));
    }
    const std::vector<int64_t> exact(listed);  // whose memory ends with the last entry
    const std::vector<int32_t> exact_offsets(offsets);
    for (const bool lists : {true, false}) {
        Found found(queries.count(), k);
        clara::cosine_rerank(queries.rows(), searched, lists ? exact.data() : nullptr,
                             exact_offsets.data(), k, threads, found.scores.data(),
                             found.rows.data());
        expect_same(found, truth.best(lists ? candidates : ranges, k), what + ", rerank");
    }
}

/// Every way to search these rows for these queries.
void check(const Matrix& queries, const Matrix& corpus, const std::vector<int64_t>& ks = {1, 6}) {
    const std::string what = name_of(queries, corpus);
    try {
        const Truth truth(queries, corpus);
        const std::vector<float> inverse = inverse_norms(corpus, 1);
        check_inverse_norms(corpus, inverse);
        const std::vector<uint8_t> mask = random_mask(corpus.count(), 1), none(corpus.count());
        const clara::Searched computed{corpus.rows(), nullptr};
        const clara::Searched given{corpus.rows(), inverse.data()};
        for (const int64_t k : ks) {
            for (const uint8_t* chosen : {static_cast<const uint8_t*>(nullptr), mask.data()}) {
                const Found best = truth.best(queries.count(), chosen, k);
                expect_same(topk(queries.rows(), given, chosen, k, 1), best, "norms given");
                expect_same(topk(queries.rows(), computed, chosen, k, 3), best, "three threads");
            }
            check_rerank(truth, queries, computed, k, 1, k, "one thread");
            check_rerank(truth, queries, given, k, 3, k + 1, "three threads");
        }
        expect_same(topk(queries.rows(), given, none.data(), 3, 2),
                    truth.best(queries.count(), none.data(), 3), "no row allowed");
        // The last query alone, as its memory ends with the matrix.
        std::vector<std::vector<int64_t>> candidates(queries.count());
        for (int64_t row = 0; row < corpus.count(); ++row) candidates.back().push_back(row);
        Found last = truth.best(candidates, std::min<int64_t>(3, corpus.count()));
        last.scores.erase(last.scores.begin(), last.scores.end() - last.width);
        last.rows.erase(last.rows.begin(), last.rows.end() - last.width);
        expect_same(topk(queries.row(queries.count() - 1), computed, nullptr, 3, 1), last,
                    "one query alone");
    } catch (const std::exception& error) {
        throw std::runtime_error(what + ": " + error.what());
    }
}

}  // namespace

/// Rows of every type and many lengths, packed, apart, and at odd addresses; the scores are the
/// same wherever rows are.
void lengths() {
    int turn = 0;
    for (const DataType type : kTypes) {
        for (const int64_t columns : {1, 3, 17, 63, 64, 65, 576, 1023, 1100, 2047, 2050}) {
            const DataType query_type = kTypes[turn++ % 3];
            const Matrix queries(query_type, 7, columns, 1, {1, 0});
            const Matrix packed(type, 37, columns, 2);
            check(queries, packed);
            const Found expected = topk(queries.rows(), {packed.rows(), nullptr}, nullptr, 37, 1);
            for (const Layout layout : {Layout{1, 0}, Layout{3, 5}, Layout{0, 64}}) {
                const Matrix corpus(type, 37, columns, 2, layout);
                const Matrix apart(query_type, 7, columns, 1, layout);
                check(apart, corpus, {4});
                const Found found = topk(apart.rows(), {corpus.rows(), nullptr}, nullptr, 37, 1);
                expect_same(found, expected, name_of(apart, corpus) + " in another layout");
            }
        }
    }
}

/// Rows whose last byte is the last of a page: some instructions are not watched by sanitizers.
void page_ends() {
    for (const DataType type : kTypes) {
        for (const int64_t columns : {1, 31, 33, 70, 1100}) {
            for (const int64_t rows : {1, 16, 70}) {
                const Matrix queries(DataType::float32, 18, columns, 1),
                    corpus(type, rows, columns, 2);
                const int64_t bytes = rows * columns * clara::item_size(type);
                const PageEnd end(bytes);
                std::memcpy(end.address(), corpus.rows().data, bytes);
                const clara::Rows last{end.address(), type, rows, columns, columns};
                for (const int64_t count : {1, 18}) {
                    clara::Rows some = queries.rows();
                    some.count = count;
                    expect_same(topk(some, {last, nullptr}, nullptr, 5, 1),
                                topk(some, {corpus.rows(), nullptr}, nullptr, 5, 1),
                                name_of(queries, corpus) + " at the end of a page");
                }
            }
        }
    }
}

/// Every count of queries up to a few tiles, and counts of rows around that of a block.
void counts() {
    for (const DataType type : kTypes) {
        for (const int64_t rows : {1, 2, 5, 15, 16, 17, 64, 65, 129, 300}) {
            for (const int64_t queries : {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 25, 49}) {
                check(Matrix(DataType::float32, queries, 64, queries), Matrix(type, rows, 64, rows),
                      {2});
            }
        }
    }
}

/// Queries that make up two groups and blocks of 128 rows, rows that several threads share by
/// blocks of 64, and few queries of many rows.
void large() {
    for (const DataType type : kTypes) {
        check(Matrix(DataType::float32, 258, 1040, 3), Matrix(type, 140, 1040, 4, {1, 0}), {10});
        check(Matrix(DataType::bfloat16, 30, 65, 3), Matrix(type, 900, 65, 4), {10});
        check(Matrix(DataType::float16, 2, 63, 5), Matrix(type, 9000, 63, 6, {0, 1}), {10});
    }
}

/// Every k: more than there are rows, more than are kept at a time.
void ks() {
    for (const DataType type : kTypes) {
        const Matrix queries(DataType::float32, 3, 17, 7), corpus(type, 2500, 17, 8);
        check(queries, corpus, {1, 2, 15, 16, 17, 100, 1000, 2048, 2499, 2500, 2501, 5000});
    }
}

/// Rows that repeat, so that nearly every score is shared, and zeros in between.
void ties() {
    for (const DataType type : kTypes) {
        Matrix corpus(type, 700, 65, 9);
        for (int64_t i = 5; i < corpus.count(); ++i) corpus.copy_row(i % 5, i);
        for (int64_t i = 0; i < corpus.count(); i += 11) corpus.fill(i, 0);
        const Matrix queries(DataType::float32, 8, 65, 10);
        check(queries, corpus, {1, 7, 64, 150, 699});
    }
}

/// Norms that float32 cannot hold, rows with NaN and infinity, zeros of both signs.
void special_values() {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
    for (const DataType type : kTypes) {
        for (const int64_t columns : {3, 64, 1100}) {
            Matrix corpus(type, 150, columns, 11), queries(DataType::float32, 20, columns, 12);
            for (Matrix* matrix : {&corpus, &queries}) {
                if (matrix->type() == DataType::int8) {
                    matrix->fill(1, 0);
                    matrix->fill(4, -128);
                    matrix->fill(7, 127);
                    continue;
                }
                matrix->fill(1, 0);
                matrix->fill(2, -0.0f);
                matrix->put(4, columns - 1, kNan);
                matrix->put(5, 0, kInfinity);
                matrix->put(6, columns / 2, -kInfinity);
                matrix->put(6, 0, kNan);
                int64_t row = 7;
                for (const float value : {3e38f, 1e-38f, 1e-45f, 0x1p90f, 0x1p-90f, 0x1p79f,
                                          0x1p-79f, 0x1p50f, 0x1p-50f, 60000.0f, 0x1p-24f}) {
                    matrix->put(row, columns - 1, value);
                    matrix->fill(row + (matrix == &corpus ? 30 : 1), value);
                    ++row;
                }
            }
            check(queries, corpus, {1, 30, 150});
        }
    }
    // The largest sums of products that int8 rows can have.
    for (const int64_t columns : {1023, 2047, 2048, 4096}) {
        Matrix corpus(DataType::int8, 8, columns, 13), queries(DataType::float32, 4, columns, 14);
        for (int64_t i = 0; i < 4; ++i) {
            corpus.fill(i, i % 2 == 0 ? -128 : 127);
            queries.fill(i, i % 2 == 0 ? 1 : -1);
        }
        check(queries, corpus);
    }
}

/// Nothing to search, nothing to search for, and rows without columns.
void empty() {
    for (const DataType type : kTypes) {
        const Matrix none(type, 0, 8, 1), some(type, 5, 8, 1), flat(type, 5, 0, 1);
        const Matrix no_queries(DataType::float32, 0, 8, 1), queries(DataType::float32, 3, 8, 1),
            flat_queries(DataType::float32, 3, 0, 1);
        topk(queries.rows(), {none.rows(), nullptr}, nullptr, 4, 2);
        topk(no_queries.rows(), {some.rows(), nullptr}, nullptr, 4, 2);
        inverse_norms(none, 2);
        check(flat_queries, flat);
        const std::vector<int32_t> offsets{0, 2, 2, 5};
        Found found(3, 2);
        clara::cosine_rerank(queries.rows(), {none.rows(), nullptr}, nullptr, offsets.data(), 2, 2,
                             found.scores.data(), found.rows.data());
        for (const int64_t row : found.rows) expect(row == -1, "a row of none was found");
        clara::cosine_rerank(no_queries.rows(), {some.rows(), nullptr}, nullptr, offsets.data(), 2,
                             2, nullptr, nullptr);
    }
}

namespace {

/// Runs body(0) to body(count - 1) at the same time; throws what one of them threw.
void at_once(int count, const std::function<void(int)>& body) {
    std::mutex mutex;
    std::string failure;
    std::vector<std::thread> threads;
    threads.reserve(count);
    for (int t = 0; t < count; ++t) {
        threads.emplace_back([&, t] {
            try {
                body(t);
            } catch (const std::exception& error) {
                const std::lock_guard<std::mutex> lock(mutex);
                failure = error.what();
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    expect(failure.empty(), failure);
}

}  // namespace

/// Calls from several threads, each of which starts threads of its own, on the same memory.
void concurrent_calls() {
    for (const DataType type : kTypes) {
        const Matrix queries(DataType::float32, 9, 576, 15), corpus(type, 1500, 576, 16);
        const Truth truth(queries, corpus);
        const std::vector<float> inverse = inverse_norms(corpus, 1);
        const std::vector<uint8_t> mask = random_mask(corpus.count(), 2);
        at_once(6, [&](int t) {
            const clara::Searched searched{corpus.rows(), t % 2 == 0 ? inverse.data() : nullptr};
            for (int i = 0; i < 3; ++i) {
                const uint8_t* chosen = (t + i) % 3 == 0 ? mask.data() : nullptr;
                const int64_t k = t == 0 ? 1 : 10 * t;
                expect_same(topk(queries.rows(), searched, chosen, k, 1 + (t + i) % 4),
                            truth.best(queries.count(), chosen, k), "calls at the same time");
            }
            check_rerank(truth, queries, searched, 20, 3, t, "calls at the same time");
            const std::vector<float> again = inverse_norms(corpus, 3);
            for (size_t i = 0; i < again.size(); ++i) {
                expect(same(again[i], inverse[i]), "inverse norms at the same time differ");
            }
        });
    }
}

/// Searches in a child that was forked while calls were running. Not under a sanitizer: in a child
/// their allocator may wait for ever for a thread that held its lock and is not there.
void fork_during_calls() {
#if !defined(CLARA_SANITIZED)
    const Matrix queries(DataType::float32, 4, 576, 17), corpus(DataType::float16, 4000, 576, 18);
    const clara::Searched searched{corpus.rows(), nullptr};
    const Found expected = topk(queries.rows(), searched, nullptr, 10, 1);
    std::atomic<int> calls{0};
    std::atomic<bool> enough{false};
    std::thread caller([&] {
        for (; !enough; ++calls) topk(queries.rows(), searched, nullptr, 10, 3);
    });
    std::string failure;
    for (int i = 0; i < 8 && failure.empty(); ++i) {
        for (const int before = calls; calls == before;) std::this_thread::yield();
        std::this_thread::sleep_for(std::chrono::milliseconds(1 + 2 * i));
        const pid_t child = fork();
        if (child == 0) {
            alarm(60);
            try {
                const Found found = topk(queries.rows(), searched, nullptr, 10, 3);
                expect_same(found, expected, "child");
                _exit(0);
            } catch (const std::exception& error) {
                std::fprintf(stderr, "%s\n", error.what());
                _exit(1);
            }
        }
        int status = -1;
        if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
            failure = "a search in a forked child ended with status " + std::to_string(status);
        }
    }
    enough = true;
    caller.join();
    expect(failure.empty(), failure);
#endif
}

}  // namespace clara_test
