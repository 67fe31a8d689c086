#include "elementwise.hpp"

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/elementwise/elementwise.hpp"
#include "matrix.hpp"

namespace clara_test {
namespace {

using clara::DataType;

constexpr DataType kTypes[] = {DataType::float32, DataType::bfloat16};

void* memory(const Matrix& matrix) { return const_cast<void*>(matrix.rows().data); }

const float* floats(const Matrix& matrix) { return static_cast<const float*>(memory(matrix)); }

void expect_near(const Matrix& found, int64_t i, int64_t j, double expected, double scale) {
    const double step = found.type() == DataType::float32 ? 1e-5 : 0x1p-7;
    if (!(std::abs(found.at(i, j) - expected) <= step * scale)) {
        throw std::runtime_error("value " + std::to_string(j) + " of row " + std::to_string(i) +
                                 " is " + std::to_string(found.at(i, j)) + ", not " +
                                 std::to_string(expected));
    }
}

void check_norm(DataType type, DataType out_type, int64_t rows, int64_t columns, int threads) {
    const Matrix x(type, rows, columns, 1), delta(type, rows, columns, 2);
    const Matrix sum(type, rows, columns, 3), out(out_type, rows, columns, 4);
    const Matrix weight(DataType::float32, 1, columns, 5), inverse(DataType::float32, 1, rows, 6);
    const Matrix grad(out_type, rows, columns, 7), gradient(type, rows, columns, 8);
    clara::norm_rows({type, out_type, columns, memory(x), memory(delta), floats(weight), 1e-3f,
                      memory(sum), static_cast<float*>(memory(inverse)), memory(out)},
                     rows, threads);
    clara::norm_gradient_rows({type, out_type, columns, memory(grad), memory(sum), floats(weight),
                               floats(inverse), memory(delta), memory(gradient)},
                              rows, threads);
    const auto count = static_cast<double>(columns);
    for (int64_t i = 0; i < rows; ++i) {
        double squares = 0, along = 0;
        for (int64_t j = 0; j < columns; ++j) {
            expect_near(sum, i, j, x.at(i, j) + delta.at(i, j), 2);
            squares += sum.at(i, j) * sum.at(i, j);
            along += sum.at(i, j) * grad.at(i, j) * weight.at(0, j);
        }
        const double scale = 1 / std::sqrt(squares / count + 1e-3);
        for (int64_t j = 0; j < columns; ++j) {
            expect_near(out, i, j, sum.at(i, j) * scale * weight.at(0, j), scale);
            const double own =
                grad.at(i, j) * weight.at(0, j) - sum.at(i, j) * along / count * scale * scale;
            expect_near(gradient, i, j, own * scale + delta.at(i, j), 2 + 2 * scale);
        }
    }
}

void check_gated(DataType type, bool gelu, int64_t values, int threads) {
    const Matrix gate(type, 1, values, 1), up(type, 1, values, 2), grad(type, 1, values, 3);
    const Matrix out(type, 1, values, 4), of_gate(type, 1, values, 5), of_up(type, 1, values, 6);
    clara::gate_values(
        {type, gelu, memory(gate), memory(up), nullptr, memory(out), nullptr, nullptr}, values,
        threads);
    clara::gate_values({type, gelu, memory(gate), memory(up), memory(grad), nullptr,
                        memory(of_gate), memory(of_up)},
                       values, threads);
    const auto active = [&](double x) {
        const double z = gelu ? 1.5957691216057308 * (x + 0.044715 * x * x * x) : x;
        return x / (1 + std::exp(-z));
    };
    for (int64_t i = 0; i < values; ++i) {
        const double x = gate.at(0, i), h = 1e-5;
        const double slope = (active(x + h) - active(x - h)) / (2 * h);
        expect_near(out, 0, i, active(x) * up.at(0, i), 1);
        expect_near(of_gate, 0, i, slope * up.at(0, i) * grad.at(0, i), 1);
        expect_near(of_up, 0, i, active(x) * grad.at(0, i), 1);
    }
}

void check_rotation(DataType type, DataType out_type, int64_t rows, int64_t half, int threads) {
    constexpr int64_t kHeads = 3;
    const int64_t width = 2 * half;
    const Matrix x(type, rows, kHeads * width, 1), out(out_type, rows, kHeads * width, 2);
    const Matrix cosines(DataType::float32, rows, width, 3),
        sines(DataType::float32, rows, width, 4);
    for (const bool transposed : {false, true}) {
        clara::rotate_rows({type, out_type, transposed, kHeads, width, memory(x), floats(cosines),
                            floats(sines), memory(out)},
                           rows, threads);
        for (int64_t i = 0; i < rows; ++i) {
            for (int64_t j = 0; j < kHeads * width; ++j) {
                const int64_t at = j % width, other = at < half ? at + half : at - half;
                const double sine = transposed ? sines.at(i, other) : sines.at(i, at);
                const double sign = (at < half) == transposed ? 1 : -1;
                expect_near(out, i, j,
                            x.at(i, j) * cosines.at(i, at) + sign * sine * x.at(i, j - at + other),
                            2);
            }
        }
    }
}

}  // namespace

void elementwise() {
    for (const DataType type : kTypes) {
        for (const DataType other : kTypes) {
            for (const int64_t columns : {1, 3, 16, 37, 64, 130}) {
                check_norm(type, other, 5, columns, 1);
                check_rotation(type, other, 3, columns, 1);
            }
            check_norm(type, other, 901, 577, 3);
            check_rotation(type, other, 701, 96, 3);
        }
        for (const bool gelu : {false, true}) {
            for (const int64_t values : {1, 15, 16, 33, 100}) check_gated(type, gelu, values, 1);
            check_gated(type, gelu, 400'001, 3);
        }
    }
}

}  // namespace clara_test
