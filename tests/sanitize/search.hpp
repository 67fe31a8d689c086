#pragma once

namespace clara_test {

/// Searches of the core, each result compared with float64 or, bit for bit, with one that was: of
/// all lengths, at the ends of pages, of all counts, over many rows, and with all numbers of
/// results.
void lengths();
void page_ends();
void counts();
void large();
void ks();

/// Equal scores, values that are no ordinary numbers, and nothing to search.
void ties();
void special_values();
void empty();

/// Calls from several threads, and in a forked process.
void concurrent_calls();
void fork_during_calls();

}  // namespace clara_test
