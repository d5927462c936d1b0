// What decoding and training do between matrix products, one pass each over the rows; no row sees another. Plain C, called by kernels.py.
// S is float or bfloat16 (half); sums are float. Keys lie in blocks of sixteen tokens [d, 16], values as [T, d].
#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>
#include <vector>

typedef uint16_t half;
typedef int64_t integer;
typedef float sixteen __attribute__((vector_size(64)));
typedef uint32_t words __attribute__((vector_size(64)));
typedef half halves __attribute__((vector_size(32)));

static inline float number(uint32_t u) { float v; memcpy(&v, &u, 4); return v; }
static inline float get(const float* p) { return *p; }
static inline float get(const half* p) { return number((uint32_t)*p << 16); }
static inline void put(float* p, float v) { *p = v; }
static inline void put(half* p, float v) { uint32_t u; memcpy(&u, &v, 4); *p = (u + 0x7fff + ((u >> 16) & 1)) >> 16; }
static inline sixteen load(const float* p) { sixteen v; memcpy(&v, p, 64); return v; }
static inline sixteen load(const half* p) {
    halves h; memcpy(&h, p, 32);
    words w = __builtin_convertvector(h, words) << 16; sixteen v; memcpy(&v, &w, 64); return v;
}

static inline float exponential(float x) {  // Cephes' expf, to about 2e-7 relative
    x = x < -87.f ? -87.f : (x > 88.f ? 88.f : x);
    float n = __builtin_rintf(x * 1.44269504f), f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f; p = p * f + 8.3334519073e-3f; p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f; p = p * f + 5.0000001201e-1f;
    return (p * f * f + f + 1.f) * number((uint32_t)((int32_t)n + 127) << 23);
}

// x += y where there is a y; h = x / rms(x) * w.
template <class S>
static void add_norm(float* X, const S* Y, const float* w, S* H, integer rows, integer d, float eps) {
#pragma omp parallel for schedule(static) if (rows > 1)
    for (integer r = 0; r < rows; r++) {
        float* x = X + r * d; S* h = H + r * d; float sum = 0;
        if (Y) for (integer i = 0; i < d; i++) x[i] += get(Y + r * d + i);
        for (integer i = 0; i < d; i++) sum += x[i] * x[i];
        float scale = 1.f / std::sqrt(sum / d + eps);
        for (integer i = 0; i < d; i++) put(h + i, x[i] * scale * w[i]);
    }
}

// Y = X W' of at most sixteen rows: weights stream through once, sixteen columns of Y at a time; a lane of a register is a row.
template <class S>
static void product(const S* X, const S* W, S* Y, integer m, integer k, integer n) {
    std::vector<float> T(k * 16);
    for (integer r = 0; r < m; r++) for (integer i = 0; i < k; i++) T[i * 16 + r] = get(X + r * k + i);
#pragma omp parallel for schedule(static)
    for (integer column = 0; column < n; column += 16) {
        const integer first = column + 16 <= n ? column : n - 16; const S* w = W + first * k;
        sixteen sum[16] = {};
        for (integer i = 0; i < k; i++) {
            if (i % 16 == 0) for (integer j = 0; j < 16; j++) __builtin_prefetch(w + j * k + i + 64, 0, 3);
            sixteen x = load(T.data() + i * 16);
#pragma GCC unroll 16
            for (int j = 0; j < 16; j++) sum[j] += get(w + j * k + i) * x;
        }
        for (integer r = 0; r < m; r++) for (int j = 0; j < 16; j++) put(Y + r * n + first + j, sum[j][r]);
    }
}

// h = x / rms(x) * w, of numbers of one kind to numbers of another.
template <class X, class S>
static void norm(const X* XS, const float* w, S* H, integer rows, integer d, float eps) {
#pragma omp parallel for schedule(static) if (rows > 1)
    for (integer r = 0; r < rows; r++) {
        const X* x = XS + r * d; S* h = H + r * d; float sum = 0;
        for (integer i = 0; i < d; i++) sum += get(x + i) * get(x + i);
        float scale = 1.f / std::sqrt(sum / d + eps);
        for (integer i = 0; i < d; i++) put(h + i, get(x + i) * scale * w[i]);
    }
}

// Gradients of `norm`: dx, and dw in parts [threads, d] of zeros.
template <class X, class S>
static void norm_back(const S* G, const X* XS, const float* w, X* DX, float* DW, integer rows, integer d, integer threads, float eps) {
#pragma omp parallel num_threads(threads)
    {
        float* dw = DW + omp_get_thread_num() * d;
#pragma omp for schedule(static)
        for (integer r = 0; r < rows; r++) {
            const S* g = G + r * d; const X* x = XS + r * d; X* dx = DX + r * d; float sum = 0, dot = 0;
            for (integer i = 0; i < d; i++) { float v = get(x + i); sum += v * v; dot += get(g + i) * w[i] * v; }
            float scale = 1.f / std::sqrt(sum / d + eps), back = dot * scale * scale / d;
            for (integer i = 0; i < d; i++) {
                float v = get(x + i), u = get(g + i);
                put(dx + i, scale * (u * w[i] - back * v)); dw[i] += u * v * scale;
            }
        }
    }
}

// Of silu(gate) * up, numbers one after the other: the gradients of both.
template <class S>
static void silu_back(const S* D, const S* G, const S* U, S* DG, S* DU, integer n) {
#pragma omp parallel for schedule(static)
    for (integer i = 0; i < n; i++) {
        float d = get(D + i), g = get(G + i), s = 1.f / (1.f + exponential(-g));
        put(DU + i, d * g * s); put(DG + i, d * get(U + i) * s * (1.f + g * (1.f - s)));
    }
}

// out = silu(gate) * up, of rows that lie `apart` numbers from each other.
template <class S>
static void silu_times(const S* GS, const S* US, S* O, integer rows, integer f, integer apart) {
#pragma omp parallel for schedule(static) if (rows > 1)
    for (integer r = 0; r < rows; r++) {
        const S *g = GS + r * apart, *u = US + r * apart; S* o = O + r * f;
        for (integer i = 0; i < f; i++) { float a = get(g + i); put(o + i, a / (1.f + exponential(-a)) * get(u + i)); }
    }
}

// (a, b) -> (a cos - b sin, b cos + a sin) of the halves of every head [rows, heads, d]; cos and sin [rows, d / 2]; sign -1 turns back.
template <class S>
static void rotate(const S* X, const float* C, const float* SN, S* O, integer rows, integer heads, integer d, float sign) {
#pragma omp parallel for schedule(static) if (rows > 1)
    for (integer r = 0; r < rows; r++) {
        const float *c = C + r * d / 2, *s = SN + r * d / 2;
        for (integer h = 0, m = d / 2; h < heads; h++) {
            const S *x = X + (r * heads + h) * d, *y = x + m; S *p = O + (r * heads + h) * d, *q = p + m;
            for (integer i = 0; i < m; i++) {
                float a = get(x + i), b = get(y + i), t = s[i] * sign;
                put(p + i, a * c[i] - b * t); put(q + i, b * c[i] + a * t);
            }
        }
    }
}

// One head: normed where w is given, its first 2 m numbers turned by its position (cos c, sin s), written to b.
template <class S>
static void turn(const S* x, const float* w, const float* c, const float* s, float* b, integer d, integer m, float eps) {
    float sum = 0;
    for (integer i = 0; i < d; i++) { b[i] = get(x + i); sum += b[i] * b[i]; }
    if (w) { float scale = 1.f / std::sqrt(sum / d + eps); for (integer i = 0; i < d; i++) b[i] *= scale * w[i]; }
    for (integer i = 0; i < m; i++) {
        float p = b[i], q = b[i + m];
        b[i] = p * c[i] - q * s[i]; b[i + m] = q * c[i] + p * s[i];
    }
}

// Scores of sixteen keys at a time, no sum across a register. D: the width of a head where it is a common one, so that loops are unrolled.
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
            for (integer i = 0; i < width; i++) out[i] += p[t] * get(v + i);
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

// Of one layer: projections [rows, (H + 2 K) d]; prompts' keys and values [groups, K, W, d], rows' own [slots, K, T, d]; tables of cos and sin
// [positions, m]. near: how many tokens a query sees, itself among them; 0: all before it. cap: scores are cap * tanh(score / cap); 0: as they are.
template <class S> struct Layer {
    S *qkv, *pk, *pv, *ok, *ov, *out; const float *qn, *kn, *cs, *sn;
    const integer *position, *group, *start, *slot, *time; integer rows, H, K, d, W, T, own, m, near; float scale, eps, cap;
};

// Row r: queries are turned in place; keys, turned, and values join the cache: the row's own at time[r] - 1, or its prompt's at position[r].
template <class S>
static void place(const Layer<S>& l, integer r) {
    integer d = l.d, t = l.own ? l.time[r] - 1 : l.position[r], at = l.own ? l.slot[r] : l.group[r], length = l.own ? l.T : l.W;
    const float *c = l.cs + l.position[r] * l.m, *s = l.sn + l.position[r] * l.m;
    S* x = l.qkv + r * (l.H + 2 * l.K) * d; float b[512];
    for (integer h = 0; h < l.H; h++, x += d) { turn(x, l.qn, c, s, b, d, l.m, l.eps); for (integer i = 0; i < d; i++) put(x + i, b[i]); }
    for (integer k = 0; k < l.K; k++, x += d) {
        integer begin = (at * l.K + k) * length * d;
        S* keys = (l.own ? l.ok : l.pk) + begin + t / 16 * 16 * d + t % 16;
        turn(x, l.kn, c, s, b, d, l.m, l.eps);
        for (integer i = 0; i < d; i++) put(keys + 16 * i, b[i]);
        memcpy((l.own ? l.ov : l.pv) + begin + t * d, x + l.K * d, d * sizeof(S));
    }
}

// Row r: attention over the first start[r] tokens of its prompt and the first time[r] of its own, of which a window leaves the last `near`.
template <class S, int D>
static void look(const Layer<S>& l, integer r, float* p) {
    integer d = l.d, a = l.start[r], b = l.time[r], n = a + b, rep = l.H / l.K; float q[512], o[512];
    const integer first = l.near && n > l.near ? n - l.near : 0;
    for (integer h = 0; h < l.H; h++) {
        integer one = (l.group[r] * l.K + h / rep) * l.W * d, other = b ? (l.slot[r] * l.K + h / rep) * l.T * d : 0;
        for (integer i = 0; i < d; i++) { q[i] = get(l.qkv + (r * (l.H + 2 * l.K) + h) * d + i); o[i] = 0; }
        dots<S, D>(q, l.pk + one, a, d, l.scale, p); dots<S, D>(q, l.ok + other, b, d, l.scale, p + a);
        if (l.cap) for (integer t = first; t < n; t++) p[t] = l.cap * std::tanh(p[t] / l.cap);
        float top = p[first], sum = 0;
        for (integer t = first; t < n; t++) top = p[t] > top ? p[t] : top;
        for (integer t = 0; t < first; t++) p[t] = 0;
        for (integer t = first; t < n; t++) { p[t] = exponential(p[t] - top); sum += p[t]; }
        mix<S, D>(p, l.pv + one, a, d, o); mix<S, D>(p + a, l.ov + other, b, d, o);
        for (integer i = 0; i < d; i++) put(l.out + (r * l.H + h) * d + i, o[i] / sum);
    }
}

// A new token of every row attends. Rows of a prompt that is being read see each other: all are placed before one looks.
template <class S, int D>
static void attend(const Layer<S>& l) {
#pragma omp parallel
    {
        std::vector<float> scores(l.W + l.T + 32);
#pragma omp for schedule(static)
        for (integer r = 0; r < (l.own ? 0 : l.rows); r++) place(l, r);
#pragma omp for schedule(dynamic, 4)
        for (integer r = 0; r < l.rows; r++) {
            if (l.own) place(l, r);
            look<S, D>(l, r, scores.data());
        }
    }
}

// C = A B, or C += A B, of small matrices of floats, R rows and V registers of columns: A's number (i, l) lies at a + i ai + l al.
template <int R, int V>
static inline void tile(const float* a, integer ai, integer al, const float* b, integer bl, float* c, integer ci, integer k, bool add) {
    sixteen sum[R][V] = {};
    if (add) for (int r = 0; r < R; r++) for (int v = 0; v < V; v++) sum[r][v] = load(c + r * ci + 16 * v);
    for (integer l = 0; l < k; l++) {
        sixteen x[V];
        for (int v = 0; v < V; v++) x[v] = load(b + l * bl + 16 * v);
        for (int r = 0; r < R; r++) { float y = a[r * ai + l * al]; for (int v = 0; v < V; v++) sum[r][v] += y * x[v]; }
    }
    for (int r = 0; r < R; r++) for (int v = 0; v < V; v++) memcpy(c + r * ci + 16 * v, &sum[r][v], 64);
}

template <int V>
static inline void strip(const float* a, integer ai, integer al, const float* b, integer bl, float* c, integer ci, integer m, integer k, bool add) {
    integer i = 0;
    for (; i + 4 <= m; i += 4) tile<4, V>(a + i * ai, ai, al, b, bl, c + i * ci, ci, k, add);
    for (; i < m; i++) tile<1, V>(a + i * ai, ai, al, b, bl, c + i * ci, ci, k, add);
}

// A [m, k], B [k, n] with rows bl apart, C [m, n] with rows ci apart; n is a multiple of sixteen.
static void multiply(const float* a, integer ai, integer al, const float* b, integer bl, float* c, integer ci, integer m, integer n, integer k,
                     bool add) {
    integer j = 0;
    for (; j + 64 <= n; j += 64) strip<4>(a, ai, al, b + j, bl, c + j, ci, m, k, add);
    for (; j < n; j += 16) strip<1>(a, ai, al, b + j, bl, c + j, ci, m, k, add);
}

// Attention of packed tokens, forward and backward. q [M, H, d], k and v [M, K, d]. A job is (first, count) of the tokens that all its queries
// see, a shared prompt, and (first, count) of its own, of which each sees itself and those before it: the last `near` of all, or 0: all.
// Jobs g[i] .. g[i + 1] share a prompt; a thread takes all of them, for one head of keys.
struct Packed { const float *q, *k, *v; const integer *jobs, *groups; integer H, K, d, near; float scale; };
static const integer QUERIES = 32;

struct Keys {  // of a job and a head: as they lie, and turned; memory is used again
    std::vector<float> k, v, kt, vt, dk, dv, p, ds; integer n, wide;
    void take(const Packed& l, const integer* job, integer head, bool back) {
        n = job[1] + job[3]; wide = (n + 15) / 16 * 16;
        for (std::vector<float>* x : {&k, &v, &kt, &vt, &dk, &dv}) x->assign(wide * l.d, 0.f);
        p.resize(QUERIES * wide); ds.resize(QUERIES * wide);
        for (integer s = 0; s < n; s++) {
            integer at = ((s < job[1] ? job[0] + s : job[2] + s - job[1]) * l.K + head) * l.d;
            memcpy(&k[s * l.d], l.k + at, l.d * 4); memcpy(&v[s * l.d], l.v + at, l.d * 4);
        }
        for (integer i = 0; i < l.d; i++) for (integer s = 0; s < n; s++) kt[i * wide + s] = k[s * l.d + i];
        if (back) for (integer i = 0; i < l.d; i++) for (integer s = 0; s < n; s++) vt[i * wide + s] = v[s * l.d + i];
    }
};

// Queries begin .. end - 1 of a job: their scores, and of each the keys [low, high) that it sees, whose probabilities `each` fills in.
template <class Each>
static void scored(const Packed& l, const integer* job, integer head, integer begin, integer end, Keys& x, Each each) {
    const integer apart = l.H * l.d, seen = job[1] + end, columns = (seen + 15) / 16 * 16;
    multiply(l.q + (job[2] + begin) * apart + head * l.d, apart, 1, x.kt.data(), x.wide, x.p.data(), x.wide, end - begin, columns, l.d, false);
    for (integer r = 0; r < end - begin; r++) {
        const integer high = job[1] + begin + r + 1, low = l.near && high > l.near ? high - l.near : 0;
        float *p = &x.p[r * x.wide], *ds = &x.ds[r * x.wide];
        each(r, (job[2] + begin + r) * l.H + head, low, high, p, ds);
        for (integer s = 0; s < low; s++) p[s] = ds[s] = 0;
        for (integer s = high; s < columns; s++) p[s] = ds[s] = 0;
    }
}

template <class Job>
static void every(const Packed& l, integer groups, Job job) {
#pragma omp parallel
    {
        Keys x;
#pragma omp for schedule(dynamic)
        for (integer task = 0; task < groups * l.K; task++)
            for (integer j = l.groups[task / l.K]; j < l.groups[task / l.K + 1]; j++) job(l.jobs + 4 * j, task % l.K, x);
    }
}

static void attention(const Packed& l, float* out, float* lse, integer groups) {
    const integer apart = l.H * l.d, rep = l.H / l.K;
    every(l, groups, [&](const integer* job, integer head, Keys& x) {
        x.take(l, job, head, false);
        for (integer h = head * rep; h < (head + 1) * rep; h++)
            for (integer i = 0; i < job[3]; i += QUERIES) {
                const integer end = i + QUERIES < job[3] ? i + QUERIES : job[3];
                scored(l, job, h, i, end, x, [&](integer, integer at, integer low, integer high, float* p, float*) {
                    float top = p[low], sum = 0;
                    for (integer s = low; s < high; s++) top = p[s] > top ? p[s] : top;
                    for (integer s = low; s < high; s++) { p[s] = exponential((p[s] - top) * l.scale); sum += p[s]; }
                    for (integer s = low; s < high; s++) p[s] /= sum;
                    lse[at] = top * l.scale + std::log(sum);
                });
                multiply(x.p.data(), x.wide, 1, x.v.data(), l.d, out + (job[2] + i) * apart + h * l.d, apart, end - i, l.d, job[1] + end, false);
            }
    });
}

// dz = scale p (g v' - sum_i g_i o_i), dq = dz k, dk = dz' q, dv = p' g; dk and dv begin with zeros.
static void attention_back(const Packed& l, const float* g, const float* out, const float* lse, float* dq, float* dk, float* dv, integer groups) {
    const integer apart = l.H * l.d, rep = l.H / l.K, d = l.d;
    every(l, groups, [&](const integer* job, integer head, Keys& x) {
        x.take(l, job, head, true);
        for (integer h = head * rep; h < (head + 1) * rep; h++)
            for (integer i = 0; i < job[3]; i += QUERIES) {
                const integer end = i + QUERIES < job[3] ? i + QUERIES : job[3], first = (job[2] + i) * apart + h * d, seen = job[1] + end;
                multiply(g + first, apart, 1, x.vt.data(), x.wide, x.ds.data(), x.wide, end - i, (seen + 15) / 16 * 16, d, false);
                scored(l, job, h, i, end, x, [&](integer r, integer at, integer low, integer high, float* p, float* ds) {
                    float dot = 0;
                    for (integer e = 0; e < d; e++) dot += g[first + r * apart + e] * out[first + r * apart + e];
                    for (integer s = low; s < high; s++) { p[s] = exponential(p[s] * l.scale - lse[at]); ds[s] = p[s] * (ds[s] - dot) * l.scale; }
                });
                multiply(x.ds.data(), x.wide, 1, x.k.data(), d, dq + first, apart, end - i, d, seen, false);
                multiply(x.ds.data(), 1, x.wide, l.q + first, apart, x.dk.data(), d, seen, d, end - i, true);
                multiply(x.p.data(), 1, x.wide, g + first, apart, x.dv.data(), d, seen, d, end - i, true);
            }
        for (integer s = 0; s < x.n; s++) {
            const integer at = ((s < job[1] ? job[0] + s : job[2] + s - job[1]) * l.K + head) * d;
            for (integer i = 0; i < d; i++) { dk[at + i] += x.dk[s * d + i]; dv[at + i] += x.dv[s * d + i]; }
        }
    });
}

// Of rows of logits, columns first .. first + n - 1 of a vocabulary: log sum exp, the entropy, and what stands at column id, if it is here:
// its log-probability among these columns, and their log sum exp again; else zeros.
template <class S>
static void say(const S* Z, const integer* ids, float* logp, float* own, float* lse, float* entropy, integer rows, integer n, integer first) {
#pragma omp parallel for schedule(static)
    for (integer r = 0; r < rows; r++) {
        const S* z = Z + r * n; float top = get(z), sum = 0, dot = 0; const integer at = ids[r] - first; const bool here = at >= 0 && at < n;
        for (integer i = 0; i < n; i++) { float v = get(z + i); top = v > top ? v : top; }
        for (integer i = 0; i < n; i++) {
            float v = get(z + i) - top, e = v < -87.f ? 0.f : exponential(v);  // what is impossible is 0 exactly, -inf too
            sum += e; dot += v < -87.f ? 0.f : e * v;
        }
        const float wide = std::log(sum);
        lse[r] = top + wide; entropy[r] = wide - dot / sum; own[r] = here ? lse[r] : 0.f; logp[r] = here ? get(z + at) - lse[r] : 0.f;
    }
}

// The gradient of logits: g (onehot(id) - exp(z - lse)), which may take their place.
template <class S>
static void slope(const S* Z, S* O, const integer* ids, const float* lse, const float* g, integer rows, integer n, integer first) {
#pragma omp parallel for schedule(static)
    for (integer r = 0; r < rows; r++) {
        const S* z = Z + r * n; S* o = O + r * n; const integer at = ids[r] - first; const bool here = at >= 0 && at < n; const float mine = here ? get(z + at) : 0.f;
        for (integer i = 0; i < n; i++) put(o + i, -g[r] * exponential(get(z + i) - lse[r]));
        if (here) put(o + at, g[r] - g[r] * exponential(mine - lse[r]));
    }
}

// One token per row by inverse CDF at temperature 1 / sharp, or the likeliest (greedy); its log-probability.
template <class S>
static void draw(const S* L, const double* u, integer* ids, float* logp, integer rows, integer V, float sharp, integer greedy) {
    const integer B = 128, blocks = (V + B - 1) / B;
#pragma omp parallel for schedule(static) if (rows > 1)
    for (integer r = 0; r < rows; r++) {
        std::vector<float> e(V), part(blocks);
        float top = -INFINITY; double total = 0, seen = 0; integer i = 0, j = 0;
        for (integer v = 0; v < V; v++) { e[v] = get(L + r * V + v) * sharp; top = e[v] > top ? e[v] : top; }
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
            for (integer v = i = j * B; v < end && seen <= point; v++)  // a block's sum may round above its parts: the last possible token
                if (e[v] > 2e-38f) { i = v; seen += e[v]; }
        }
        ids[r] = i; logp[r] = get(L + r * V + i) * sharp - top - (float)std::log(total);
    }
}

#define FOR_KIND(call) if (wide) { typedef float S; call; } else { typedef half S; call; }
extern "C" {
void laurel_add_norm(int wide, void* x, void* y, void* w, void* h, integer rows, integer d, float eps) {
    FOR_KIND((add_norm<S>((float*)x, (S*)y, (float*)w, (S*)h, rows, d, eps)))
}
void laurel_product(int wide, void* x, void* w, void* y, integer m, integer k, integer n) {
    FOR_KIND((product<S>((S*)x, (S*)w, (S*)y, m, k, n)))
}
void laurel_silu_times(int wide, void* g, void* u, void* o, integer rows, integer f, integer apart) {
    FOR_KIND((silu_times<S>((S*)g, (S*)u, (S*)o, rows, f, apart)))
}
// from: are the numbers that are normed float?
#define FROM(call) if (from) { typedef float X; FOR_KIND(call) } else { typedef half X; FOR_KIND(call) }
void laurel_norm(int wide, void* x, void* w, void* h, integer from, integer rows, integer d, float eps) {
    FROM((norm<X, S>((X*)x, (float*)w, (S*)h, rows, d, eps)))
}
void laurel_norm_back(int wide, void* g, void* x, void* w, void* dx, void* dw, integer from, integer rows, integer d, integer threads,
                      float eps) {
    FROM((norm_back<X, S>((S*)g, (X*)x, (float*)w, (X*)dx, (float*)dw, rows, d, threads, eps)))
}
void laurel_silu_back(int wide, void* d, void* g, void* u, void* dg, void* du, integer n) {
    FOR_KIND((silu_back<S>((S*)d, (S*)g, (S*)u, (S*)dg, (S*)du, n)))
}
void laurel_rotate(int wide, void* x, void* c, void* s, void* o, integer rows, integer heads, integer d, float sign) {
    FOR_KIND((rotate<S>((S*)x, (float*)c, (float*)s, (S*)o, rows, heads, d, sign)))
}
void laurel_attention(int, void* q, void* k, void* v, void* jobs, void* groups, void* out, void* lse, integer count, integer H, integer K, integer d,
                      integer near, float scale) {
    attention({(float*)q, (float*)k, (float*)v, (integer*)jobs, (integer*)groups, H, K, d, near, scale}, (float*)out, (float*)lse, count);
}
void laurel_attention_back(int, void* q, void* k, void* v, void* jobs, void* groups, void* g, void* out, void* lse, void* dq, void* dk, void* dv,
                           integer count, integer H, integer K, integer d, integer near, float scale) {
    attention_back({(float*)q, (float*)k, (float*)v, (integer*)jobs, (integer*)groups, H, K, d, near, scale}, (float*)g, (float*)out, (float*)lse,
                   (float*)dq, (float*)dk, (float*)dv, count);
}
void laurel_say(int wide, void* z, void* ids, void* logp, void* own, void* lse, void* entropy, integer rows, integer n, integer first) {
    FOR_KIND((say<S>((S*)z, (integer*)ids, (float*)logp, (float*)own, (float*)lse, (float*)entropy, rows, n, first)))
}
void laurel_slope(int wide, void* z, void* o, void* ids, void* lse, void* g, integer rows, integer n, integer first) {
    FOR_KIND((slope<S>((S*)z, (S*)o, (integer*)ids, (float*)lse, (float*)g, rows, n, first)))
}
void laurel_attend(int wide, void* qkv, void* pk, void* pv, void* ok, void* ov, void* out, void* qn, void* kn, void* cs, void* sn, void* position,
                   void* group, void* start, void* slot, void* time, integer rows, integer H, integer K, integer d, integer W, integer T,
                   integer own, integer m, integer near, float scale, float eps, float cap) {
#define ATTEND(D) FOR_KIND((attend<S, D>({(S*)qkv, (S*)pk, (S*)pv, (S*)ok, (S*)ov, (S*)out, (float*)qn, (float*)kn, (float*)cs, (float*)sn, \
    (integer*)position, (integer*)group, (integer*)start, (integer*)slot, (integer*)time, rows, H, K, d, W, T, own, m, near, scale, eps, cap})))
    if (d == 32) { ATTEND(32) } else if (d == 64) { ATTEND(64) } else if (d == 128) { ATTEND(128) } else if (d == 256) { ATTEND(256) } else { ATTEND(0) }
}
void laurel_draw(int wide, void* l, void* u, void* ids, void* logp, integer rows, integer V, float sharp, integer greedy) {
    FOR_KIND((draw<S>((S*)l, (double*)u, (integer*)ids, (float*)logp, rows, V, sharp, greedy)))
}
}
