// The row kernels, written over the compiler's vector types. Each instruction set has a file that
// defines CLARA_VECTOR_BYTES, includes this, and ends with CLARA_DEFINE_ROW_KERNELS. As in
// core/simd/tile.hpp, all is in an unnamed namespace and uses nothing of the standard library.

#include "core/elementwise/row_kernels.hpp"

namespace clara {
namespace {

constexpr int kLanes = CLARA_VECTOR_BYTES / 4;

using Floats __attribute__((vector_size(CLARA_VECTOR_BYTES))) = float;
using Bits __attribute__((vector_size(CLARA_VECTOR_BYTES))) = uint32_t;
using Ints __attribute__((vector_size(CLARA_VECTOR_BYTES))) = int32_t;
using Halves __attribute__((vector_size(CLARA_VECTOR_BYTES / 2))) = uint16_t;

/// How many of a vector's lanes are used: all, or the first few at the end of a row.
struct Whole {};
struct Part {
    int64_t count;
};

template <DataType type>
struct Values;

template <>
struct Values<DataType::float32> {
    static constexpr int kSize = 4;
    static Floats unpack(const char* p) {
        Floats x;
        __builtin_memcpy(&x, p, sizeof(x));
        return x;
    }
    static void pack(char* p, Floats x) { __builtin_memcpy(p, &x, sizeof(x)); }
};

template <>
struct Values<DataType::bfloat16> {
    static constexpr int kSize = 2;
    static Floats unpack(const char* p) {
        Halves halves;
        __builtin_memcpy(&halves, p, sizeof(halves));
        return (Floats)(__builtin_convertvector(halves, Bits) << 16);
    }
    /// Rounds to the nearest, of two equally near to the even one. NaN stays NaN.
    static void pack(char* p, Floats x) {
        const Bits bits = (Bits)x;
        const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        const Bits is_nan = (Bits)(x != x);
        const Bits chosen = (is_nan & 0x7fc0) | (~is_nan & rounded);
        const Halves halves = __builtin_convertvector(chosen, Halves);
        __builtin_memcpy(p, &halves, sizeof(halves));
    }
};

template <DataType type>
Floats get(const void* values, int64_t at, Whole) {
    return Values<type>::unpack(static_cast<const char*>(values) + at * Values<type>::kSize);
}

/// Zero in the lanes that are not used.
template <DataType type>
Floats get(const void* values, int64_t at, Part part) {
    char buffer[sizeof(Floats)] = {};
    __builtin_memcpy(buffer, static_cast<const char*>(values) + at * Values<type>::kSize,
                     part.count * Values<type>::kSize);
    return Values<type>::unpack(buffer);
}

template <DataType type>
void put(void* values, int64_t at, Floats x, Whole) {
    Values<type>::pack(static_cast<char*>(values) + at * Values<type>::kSize, x);
}

template <DataType type>
void put(void* values, int64_t at, Floats x, Part part) {
    char buffer[sizeof(Floats)];
    Values<type>::pack(buffer, x);
    __builtin_memcpy(static_cast<char*>(values) + at * Values<type>::kSize, buffer,
                     part.count * Values<type>::kSize);
}

/// Calls body(i, used) for each vector of values from `begin` to `end`.
template <class Body>
void each(int64_t begin, int64_t end, Body body) {
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) body(i, Whole{});
    if (i < end) body(i, Part{end - i});
}

float total(Floats x) {
    float sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += x[lane];
    return sum;
}

constexpr DataType kFloat32 = DataType::float32;
constexpr DataType kBfloat16 = DataType::bfloat16;

template <DataType in, DataType out, bool kAdds>
void norm_rows(const Norm& norm, int64_t begin, int64_t end) {
    const int64_t columns = norm.columns;
    const void* source = kAdds ? norm.sum : norm.x;
    for (int64_t row = begin; row < end; ++row) {
        const int64_t start = row * columns;
        Floats squares = {};
        each(0, columns, [&](int64_t i, auto used) {
            if constexpr (kAdds) {
                put<in>(norm.sum, start + i,
                        get<in>(norm.x, start + i, used) + get<in>(norm.delta, start + i, used),
                        used);
            }
            const Floats x = get<in>(source, start + i, used);
            squares += x * x;
        });
        const float inverse = 1 / __builtin_sqrtf(total(squares) / columns + norm.epsilon);
        norm.inverse[row] = inverse;
        each(0, columns, [&](int64_t i, auto used) {
            const Floats x = get<in>(source, start + i, used);
            put<out>(norm.out, start + i, x * inverse * get<kFloat32>(norm.weight, i, used), used);
        });
    }
}

template <DataType in, DataType out>
void norm_of(const Norm& norm, int64_t begin, int64_t end) {
    if (norm.delta != nullptr) return norm_rows<in, out, true>(norm, begin, end);
    norm_rows<in, out, false>(norm, begin, end);
}

void norm(const Norm& norm, int64_t begin, int64_t end) {
    const bool narrow = norm.type == kBfloat16, narrow_out = norm.out_type == kBfloat16;
    if (narrow && narrow_out) return norm_of<kBfloat16, kBfloat16>(norm, begin, end);
    if (narrow) return norm_of<kBfloat16, kFloat32>(norm, begin, end);
    if (narrow_out) return norm_of<kFloat32, kBfloat16>(norm, begin, end);
    norm_of<kFloat32, kFloat32>(norm, begin, end);
}

/// With g = grad · weight and n = x / rms(x): (g - n · mean(g · n)) / rms(x).
template <DataType in, DataType upstream, bool kAdds>
void norm_gradient_rows(const NormGradient& call, int64_t begin, int64_t end) {
    const int64_t columns = call.columns;
    for (int64_t row = begin; row < end; ++row) {
        const int64_t start = row * columns;
        const float inverse = call.inverse[row];
        Floats products = {};
        each(0, columns, [&](int64_t i, auto used) {
            products += get<upstream>(call.grad, start + i, used) *
                        get<kFloat32>(call.weight, i, used) * get<in>(call.x, start + i, used);
        });
        const float along = total(products) / columns * inverse * inverse;
        each(0, columns, [&](int64_t i, auto used) {
            const Floats scaled =
                get<upstream>(call.grad, start + i, used) * get<kFloat32>(call.weight, i, used);
            const Floats own = (scaled - get<in>(call.x, start + i, used) * along) * inverse;
            if constexpr (kAdds) {
                put<in>(call.out, start + i, own + get<in>(call.beside, start + i, used), used);
            } else {
                put<in>(call.out, start + i, own, used);
            }
        });
    }
}

template <DataType in, DataType upstream>
void norm_gradient_of(const NormGradient& call, int64_t begin, int64_t end) {
    if (call.beside != nullptr) return norm_gradient_rows<in, upstream, true>(call, begin, end);
    norm_gradient_rows<in, upstream, false>(call, begin, end);
}

void norm_gradient(const NormGradient& call, int64_t begin, int64_t end) {
    const bool narrow = call.type == kBfloat16, narrow_grad = call.grad_type == kBfloat16;
    if (narrow && narrow_grad) return norm_gradient_of<kBfloat16, kBfloat16>(call, begin, end);
    if (narrow) return norm_gradient_of<kBfloat16, kFloat32>(call, begin, end);
    if (narrow_grad) return norm_gradient_of<kFloat32, kBfloat16>(call, begin, end);
    norm_gradient_of<kFloat32, kFloat32>(call, begin, end);
}

constexpr float kMostPower = 87;

/// Within ±kMostPower. NaN stays NaN.
Floats bounded(Floats x) {
    const Floats most = Floats{} + kMostPower;
    x = x > most ? most : x;
    return x < -most ? -most : x;
}

/// e^x within two units of float32's last place; of bounded(x).
Floats exponential(Floats x) {
    x = bounded(x);
    constexpr float kRounds = 12582912.0f;  // 1.5 · 2^23: adding it leaves no fraction
    const Floats whole = (x * 1.44269504088896341f + kRounds) - kRounds;
    const Floats rest = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
    Floats sum = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    const Ints power = (__builtin_convertvector(whole, Ints) + 127) << 23;
    return sum * (Floats)power;
}

constexpr float kCubic = 0.044715f;
constexpr float kTwiceRoot = 1.5957691216057308f;  // 2 · sqrt(2 / π)

/// What the sigmoid is of: x itself for SiLU; 0.5 (1 + tanh(u)) is the sigmoid of 2u.
template <bool kGelu>
Floats gate_of(Floats x) {
    return kGelu ? x * (x * x * kCubic + 1.0f) * kTwiceRoot : x;
}

template <bool kGelu>
Floats gate_slope(Floats x) {
    return kGelu ? (x * x * (3 * kCubic) + 1.0f) * kTwiceRoot : Floats{} + 1.0f;
}

/// x · share, where the share is a sigmoid of bounded values: never 0, as it would have to be far
/// below. As in PyTorch -∞ makes NaN.
Floats shared(Floats x, Floats share) { return x * (x < -kMostPower ? Floats{} : share); }

template <DataType type, bool kGelu>
void gated_values(const Gated& call, int64_t begin, int64_t end) {
    each(begin, end, [&](int64_t i, auto used) {
        const Floats x = get<type>(call.gate, i, used);
        const Floats share = 1.0f / (exponential(-gate_of<kGelu>(x)) + 1.0f);
        put<type>(call.out, i, shared(x, share) * get<type>(call.up, i, used), used);
    });
}

template <DataType type, bool kGelu>
void gated_gradient_values(const Gated& call, int64_t begin, int64_t end) {
    each(begin, end, [&](int64_t i, auto used) {
        const Floats x = get<type>(call.gate, i, used), grad = get<type>(call.grad, i, used);
        const Floats near = bounded(x);  // whose powers are finite; slopes beyond are 0 or 1
        const Floats power = exponential(-gate_of<kGelu>(near));
        const Floats share = 1.0f / (power + 1.0f);
        // As 1 - share it would lose its digits where share is almost 1.
        const Floats remainder = power * share;
        // What is added last is 0, or as in PyTorch NaN where x is infinite.
        const Floats slope = share + near * share * remainder * gate_slope<kGelu>(near) + x * 0.0f;
        put<type>(call.grad_gate, i, grad * get<type>(call.up, i, used) * slope, used);
        put<type>(call.grad_up, i, grad * shared(x, share), used);
    });
}

void gated(const Gated& call, int64_t begin, int64_t end) {
    if (call.type == kBfloat16) {
        if (call.gelu) return gated_values<kBfloat16, true>(call, begin, end);
        return gated_values<kBfloat16, false>(call, begin, end);
    }
    if (call.gelu) return gated_values<kFloat32, true>(call, begin, end);
    gated_values<kFloat32, false>(call, begin, end);
}

void gated_gradient(const Gated& call, int64_t begin, int64_t end) {
    if (call.type == kBfloat16) {
        if (call.gelu) return gated_gradient_values<kBfloat16, true>(call, begin, end);
        return gated_gradient_values<kBfloat16, false>(call, begin, end);
    }
    if (call.gelu) return gated_gradient_values<kFloat32, true>(call, begin, end);
    gated_gradient_values<kFloat32, false>(call, begin, end);
}

/// out₁ = x₁ cos₁ - x₂ sin₁ and out₂ = x₂ cos₂ + x₁ sin₂ of the halves of a head; transposed
/// out₁ = x₁ cos₁ + x₂ sin₂ and out₂ = x₂ cos₂ - x₁ sin₁.
template <DataType in, DataType out>
void rotate_rows(const Rotation& call, int64_t begin, int64_t end) {
    const int64_t half = call.head_dim / 2;
    const float sign = call.transposed ? -1.0f : 1.0f;
    for (int64_t row = begin; row < end; ++row) {
        const float* cosines = call.cosines + row * call.head_dim;
        const float* sines = call.sines + row * call.head_dim;
        const float* first_sines = sines + (call.transposed ? half : 0);
        const float* last_sines = sines + (call.transposed ? 0 : half);
        for (int64_t head = 0; head < call.heads; ++head) {
            const int64_t start = (row * call.heads + head) * call.head_dim;
            each(0, half, [&](int64_t i, auto used) {
                const Floats first = get<in>(call.x, start + i, used);
                const Floats last = get<in>(call.x, start + half + i, used);
                put<out>(call.out, start + i,
                         first * get<kFloat32>(cosines, i, used) -
                             last * sign * get<kFloat32>(first_sines, i, used),
                         used);
                put<out>(call.out, start + half + i,
                         last * get<kFloat32>(cosines, half + i, used) +
                             first * sign * get<kFloat32>(last_sines, i, used),
                         used);
            });
        }
    }
}

void rotate(const Rotation& call, int64_t begin, int64_t end) {
    const bool narrow = call.type == kBfloat16, narrow_out = call.out_type == kBfloat16;
    if (narrow && narrow_out) return rotate_rows<kBfloat16, kBfloat16>(call, begin, end);
    if (narrow) return rotate_rows<kBfloat16, kFloat32>(call, begin, end);
    if (narrow_out) return rotate_rows<kFloat32, kBfloat16>(call, begin, end);
    rotate_rows<kFloat32, kFloat32>(call, begin, end);
}

}  // namespace
}  // namespace clara

#define CLARA_DEFINE_ROW_KERNELS(variable)                                            \
    namespace clara {                                                                 \
    extern const RowKernels variable;                                                 \
    const RowKernels variable = {norm, norm_gradient, gated, gated_gradient, rotate}; \
    }
