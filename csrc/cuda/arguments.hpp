#pragma once

#include <stdexcept>
#include <string>

#include "cuda/cosine_topk.hpp"

namespace clara {

constexpr int64_t kMostResults = 2048;
constexpr int64_t kMostRows = 0xffffffff;  // a key has 32 bits for the row
constexpr int64_t kMostColumns = 1 << 28;  // so that an int holds every offset in a row

inline void require(bool holds, const std::string& message) {
    if (!holds) throw std::invalid_argument(message);
}

inline void require_rows(const CudaRows& rows, const char* name) {
    const std::string who(name);
    require(rows.count >= 0 && rows.columns >= 0, who + " must not have a negative size");
    require(rows.count <= 1 || rows.stride >= rows.columns || rows.stride == 0,
            who + " must have a stride of at least a row, got " + std::to_string(rows.stride));
    require(rows.data != nullptr || rows.count * rows.columns == 0, who + " must not be null");
}

inline void require_sizes(const CudaRows& queries, const CudaRows& corpus, int64_t k) {
    require_rows(queries, "queries");
    require_rows(corpus, "corpus");
    require(queries.type != DataType::int8, "queries must be float32, float16 or bfloat16");
    require(queries.columns == corpus.columns, "queries must be as wide as the corpus (" +
                                                   std::to_string(corpus.columns) + "), got " +
                                                   std::to_string(queries.columns));
    require(corpus.count <= kMostRows,
            "corpus must have fewer than 2^32 rows, got " + std::to_string(corpus.count));
    require(corpus.columns <= kMostColumns,
            "corpus must have at most 2^28 columns, got " + std::to_string(corpus.columns));
    require(k >= 1 && k <= kMostResults, "k must be 1 to 2048, got " + std::to_string(k));
}

}  // namespace clara
