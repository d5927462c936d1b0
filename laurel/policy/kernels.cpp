// What a decoding step does between its matrix products, one pass each over the rows; no row sees another. Plain C, called by kernels.py.
// Numbers are float, float rounded to bfloat16 (R: a CPU without bfloat16 products), or bfloat16; sums are float.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

typedef uint16_t half;
typedef int64_t integer;

static inline uint32_t bits(float v) { uint32_t u; memcpy(&u, &v, 4); return u; }
static inline float number(uint32_t u) { float v; memcpy(&v, &u, 4); return v; }
static inline uint32_t rounded(float v) { uint32_t u = bits(v); return u + 0x7fff + ((u >> 16) & 1); }
template <bool R> static inline float get(const float* p) { return R ? number(rounded(*p) & 0xffff0000u) : *p; }
template <bool R> static inline float get(const half* p) { return number((uint32_t)*p << 16); }
template <bool R> static inline void put(float* p, float v) { *p = R ? number(rounded(v) & 0xffff0000u) : v; }
template <bool R> static inline void put(half* p, float v) { *p = rounded(v) >> 16; }

static inline float exponential(float x) {  // Cephes' expf, to about 2e-7 relative
    x = x < -87.f ? -87.f : (x > 88.f ? 88.f : x);
    float n = __builtin_rintf(x * 1.44269504f), f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f; p = p * f + 8.3334519073e-3f; p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f; p = p * f + 5.0000001201e-1f;
    return (p * f * f + f + 1.f) * number((uint32_t)((int32_t)n + 127) << 23);
}

// x += y where there is a y; h = x / rms(x) * w.
template <class S, bool R>
static void add_norm(float* X, const S* Y, const float* w, S* H, integer rows, integer d, float eps) {
#pragma omp parallel for schedule(static) if (rows > 1)
    for (integer r = 0; r < rows; r++) {
        float* x = X + r * d; S* h = H + r * d; float sum = 0;
        if (Y) for (integer i = 0; i < d; i++) x[i] += get<R>(Y + r * d + i);
        for (integer i = 0; i < d; i++) sum += x[i] * x[i];
        float scale = 1.f / std::sqrt(sum / d + eps);
        for (integer i = 0; i < d; i++) put<R>(h + i, x[i] * scale * w[i]);
    }
}

// out = silu(gate) * up, of rows [gate, up].
template <class S, bool R>
static void silu_times(const S* GU, S* O, integer rows, integer f) {
#pragma omp parallel for schedule(static) if (rows > 1)
    for (integer r = 0; r < rows; r++) {
        const S *g = GU + r * 2 * f, *u = g + f; S* o = O + r * f;
        for (integer i = 0; i < f; i++) {
            float a = get<R>(g + i); S s;
            put<R>(&s, a / (1.f + exponential(-a)));
            put<R>(o + i, get<R>(&s) * get<R>(u + i));
        }
    }
}

// One head: normed where w is given, turned by its position, written to o.
template <class S, bool R>
static void turn(const S* x, const float* w, const float* c, const float* s, S* o, integer d, float eps) {
    float b[512], sum = 0;
    for (integer i = 0; i < d; i++) { b[i] = get<R>(x + i); sum += b[i] * b[i]; }
    if (w) { float scale = 1.f / std::sqrt(sum / d + eps); for (integer i = 0; i < d; i++) b[i] *= scale * w[i]; }
    for (integer i = 0, m = d / 2; i < m; i++) {
        float p = b[i], q = b[i + m];
        put<R>(o + i, p * c[i] - q * s[i]); put<R>(o + i + m, q * c[i] + p * s[i]);
    }
}

typedef float sixteen __attribute__((vector_size(64)));
typedef uint32_t words __attribute__((vector_size(64)));
typedef half halves __attribute__((vector_size(32)));
static inline sixteen load(const float* p) { sixteen v; memcpy(&v, p, 64); return v; }
static inline sixteen load(const half* p) {
    halves h; memcpy(&h, p, 32);
    words w = __builtin_convertvector(h, words) << 16; sixteen v; memcpy(&v, &w, 64); return v;
}

// Keys lie in blocks of sixteen tokens [d, 16]: sixteen scores at a time, and no sum across a register.
// D: the width of a head where it is a common one, so that loops are unrolled; else 0.
template <class S, int D>
static void dots(const float* __restrict__ q, const S* __restrict__ k, integer n, integer width, float scale, float* __restrict__ o) {
    const integer d = D ? D : width;
    for (integer t = 0; t < n; t += 16, k += 16 * d) {
        sixteen a = {}, b = {}, c = {}, e = {};
        for (integer i = 0; i < d; i += 4) {
            a += q[i] * load(k + 16 * i); b += q[i + 1] * load(k + 16 * i + 16);
            c += q[i + 2] * load(k + 16 * i + 32); e += q[i + 3] * load(k + 16 * i + 48);
        }
        a = (a + b + (c + e)) * scale;
        memcpy(o + t, &a, 64);
    }
}

template <class S, int D>
static void mix(const float* __restrict__ p, const S* __restrict__ v, integer n, integer width, float* __restrict__ out) {
    if (!D) {
        for (integer t = 0; t < n; t++, v += width)
            for (integer i = 0; i < width; i++) out[i] += p[t] * get<false>(v + i);
        return;
    }
    const int parts = D ? D / 16 : 1;
    sixteen even[parts] = {}, odd[parts] = {};
    for (integer t = 0; t < n; t += 2)
        for (int i = 0; i < parts; i++) {
            even[i] += p[t] * load(v + t * D + 16 * i);
            if (t + 1 < n) odd[i] += p[t + 1] * load(v + (t + 1) * D + 16 * i);
        }
    for (int i = 0; i < D; i++) out[i] += even[i / 16][i % 16] + odd[i / 16][i % 16];
}

// Attention of one new token per row over its prompt's keys [groups, K, W, d] and its own [rows, K, T, d], which it joins.
template <class S, bool R, int D>
static void attend(const S* QKV, const float* qn, const float* kn, const float* cs, const float* sn, const S* PK, const S* PV, S* OK, S* OV,
                   const integer* group, const integer* start, const integer* time, S* O,
                   integer rows, integer H, integer K, integer d, integer W, integer T, float scale, float eps) {
#pragma omp parallel for schedule(dynamic, 4) if (rows > 1)
    for (integer r = 0; r < rows; r++) {
        std::vector<float> weights(W + T + 16);
        float *p = weights.data(), q[512], o[512]; S turned[512];
        const float *c = cs + r * d / 2, *s = sn + r * d / 2; const S* x = QKV + r * (H + 2 * K) * d;
        integer a = start[r], b = time[r] + 1, n = a + b, rep = H / K;
        for (integer k = 0; k < K; k++) {
            const S *pk = PK + (group[r] * K + k) * W * d, *pv = PV + (group[r] * K + k) * W * d;
            S *ok = OK + (r * K + k) * T * d, *ov = OV + (r * K + k) * T * d;
            turn<S, R>(x + (H + k) * d, kn, c, s, turned, d, eps);
            for (integer i = 0; i < d; i++) ok[(time[r] / 16 * d + i) * 16 + time[r] % 16] = turned[i];
            for (integer i = 0; i < d; i++) put<R>(ov + time[r] * d + i, get<R>(x + (H + K + k) * d + i));
            for (integer h = k * rep; h < (k + 1) * rep; h++) {
                turn<S, R>(x + h * d, qn, c, s, turned, d, eps);
                for (integer i = 0; i < d; i++) { q[i] = get<false>(turned + i); o[i] = 0; }
                dots<S, D>(q, pk, a, d, scale, p); dots<S, D>(q, ok, b, d, scale, p + a);
                float top = p[0], sum = 0;
                for (integer t = 1; t < n; t++) top = p[t] > top ? p[t] : top;
                for (integer t = 0; t < n; t++) { p[t] = exponential(p[t] - top); sum += p[t]; }
                mix<S, D>(p, pv, a, d, o); mix<S, D>(p + a, ov, b, d, o);
                for (integer i = 0; i < d; i++) put<R>(O + (r * H + h) * d + i, o[i] / sum);
            }
        }
    }
}

// One token per row by inverse CDF at temperature 1 / sharp, or the likeliest (greedy); its log-probability.
template <class S, bool R>
static void draw(const S* L, const double* u, integer* ids, float* logp, integer rows, integer V, float sharp, integer greedy) {
    const integer B = 128, blocks = (V + B - 1) / B;
#pragma omp parallel for schedule(static) if (rows > 1)
    for (integer r = 0; r < rows; r++) {
        std::vector<float> e(V), part(blocks);
        float top = -INFINITY; double total = 0, seen = 0; integer i = 0, j = 0;
        for (integer v = 0; v < V; v++) { e[v] = get<R>(L + r * V + v) * sharp; top = e[v] > top ? e[v] : top; }
        if (greedy) while (i < V - 1 && e[i] != top) i++;
        for (j = 0; j < blocks; j++) {
            integer end = (j + 1) * B < V ? (j + 1) * B : V; float s = 0;
            for (integer v = j * B; v < end; v++) { e[v] = exponential(e[v] - top); s += e[v]; }
            part[j] = s; total += s;
        }
        if (!greedy) {
            double point = u[r] * total;
            for (j = 0; j < blocks - 1 && seen + part[j] <= point; j++) seen += part[j];
            integer end = (j + 1) * B < V ? (j + 1) * B : V;
            for (i = j * B; i < end - 1; i++) { seen += e[i]; if (seen > point) break; }
        }
        ids[r] = i; logp[r] = get<R>(L + r * V + i) * sharp - top - (float)std::log(total);
    }
}

#define FOR_KIND(call) if (kind == 2) { typedef half S; const bool R = false; call; } else if (kind == 1) { typedef float S; const bool R = true; call; } \
    else { typedef float S; const bool R = false; call; }
extern "C" {
void laurel_add_norm(int kind, void* x, void* y, void* w, void* h, integer rows, integer d, float eps) {
    FOR_KIND((add_norm<S, R>((float*)x, (S*)y, (float*)w, (S*)h, rows, d, eps)))
}
void laurel_silu_times(int kind, void* gu, void* o, integer rows, integer f) { FOR_KIND((silu_times<S, R>((S*)gu, (S*)o, rows, f))) }
void laurel_attend(int kind, void* qkv, void* qn, void* kn, void* cs, void* sn, void* pk, void* pv, void* ok, void* ov, void* group, void* start,
                   void* time, void* o, integer rows, integer H, integer K, integer d, integer W, integer T, float scale, float eps) {
#define ATTEND(D) FOR_KIND((attend<S, R, D>((S*)qkv, (float*)qn, (float*)kn, (float*)cs, (float*)sn, (S*)pk, (S*)pv, (S*)ok, (S*)ov, \
    (integer*)group, (integer*)start, (integer*)time, (S*)o, rows, H, K, d, W, T, scale, eps)))
    if (d == 32) { ATTEND(32) } else if (d == 64) { ATTEND(64) } else if (d == 128) { ATTEND(128) } else { ATTEND(0) }
}
void laurel_draw(int kind, void* l, void* u, void* ids, void* logp, integer rows, integer V, float sharp, integer greedy) {
    FOR_KIND((draw<S, R>((S*)l, (double*)u, (integer*)ids, (float*)logp, rows, V, sharp, greedy)))
}
}
