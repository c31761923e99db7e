/* Ratios of eight tridiagonal chains and their exact adjoint: method (d) of resolvent.py. */
#include <stddef.h>
enum { B = 8 };
typedef float lanes[B];
typedef lanes complex_lanes[2];

static inline void ratio(const float *a, const float *k, lanes *g, float zr, float zi, lanes *out) {
    for (int l = 0; l < B; l++) {
        float wr = a[l] - zr - k[l] * g[0][l], wi = -zi - k[l] * g[1][l];
        float s = 1.0f / (wr * wr + wi * wi);
        out[0][l] = wr * s;
        out[1][l] = -wi * s;
    }
}

void forward(ptrdiff_t n, const lanes *a, const lanes *b, const lanes *c, float zr, float zi,
             lanes *k, complex_lanes *left, complex_lanes *right, complex_lanes *g) {
    for (int l = 0; l < B; l++) k[0][l] = k[n][l] = 0;  /* k[i] couples i - 1 and i */
    for (ptrdiff_t i = 1; i < n; i++)
        for (int l = 0; l < B; l++) k[i][l] = b[i - 1][l] * c[i - 1][l];
    complex_lanes u = {{0}}, v = {{0}};
    for (ptrdiff_t i = 0; i < n; i++) {
        ptrdiff_t j = n - 1 - i;
        ratio(a[i], k[i], u, zr, zi, u);
        ratio(a[j], k[j + 1], v, zr, zi, v);
        for (int p = 0; p < 2; p++)
            for (int l = 0; l < B; l++) left[i][p][l] = u[p][l], right[j][p][l] = v[p][l];
    }
    for (ptrdiff_t i = 0; i < n; i++)
        for (int l = 0; l < B; l++) {
            float wr = a[i][l] - zr, wi = -zi;
            if (i) wr -= k[i][l] * left[i - 1][0][l], wi -= k[i][l] * left[i - 1][1][l];
            if (i < n - 1) {
                wr -= k[i + 1][l] * right[i + 1][0][l];
                wi -= k[i + 1][l] * right[i + 1][1][l];
            }
            float s = 1.0f / (wr * wr + wi * wi);
            g[i][0][l] = wr * s;
            g[i][1][l] = -wi * s;
        }
}

static inline void adjoint(lanes *w, lanes *g, const float *k, lanes *r, lanes *s) {
    for (int l = 0; l < B; l++) {
        float gr = g[0][l] * g[0][l] - g[1][l] * g[1][l], gi = 2 * g[0][l] * g[1][l];
        float hr = k[l] * (r[0][l] * r[0][l] - r[1][l] * r[1][l]);
        float hi = k[l] * 2 * r[0][l] * r[1][l];
        float sr = w[0][l] * gr - w[1][l] * gi + hr * s[0][l] - hi * s[1][l];
        s[1][l] = w[0][l] * gi + w[1][l] * gr + hr * s[1][l] + hi * s[0][l];
        s[0][l] = sr;
    }
}

void backward(ptrdiff_t n, const lanes *b, const lanes *c, const lanes *k, complex_lanes *left,
              complex_lanes *right, complex_lanes *g, complex_lanes *w, complex_lanes *sl,
              complex_lanes *sr, lanes *da, lanes *db, lanes *dc) {
    complex_lanes u = {{0}}, v = {{0}};
    for (ptrdiff_t i = 0; i < n; i++) {
        ptrdiff_t j = n - 1 - i;
        adjoint(w[i], g[i], k[i], right[i], u);
        adjoint(w[j], g[j], k[j + 1], left[j], v);
        for (int p = 0; p < 2; p++)
            for (int l = 0; l < B; l++) sl[i][p][l] = u[p][l], sr[j][p][l] = v[p][l];
    }
    for (ptrdiff_t i = 0; i < n; i++)
        for (int l = 0; l < B; l++) {
            float gr = g[i][0][l] * g[i][0][l] - g[i][1][l] * g[i][1][l];
            float gi = 2 * g[i][0][l] * g[i][1][l];
            da[i][l] = w[i][0][l] * gr - w[i][1][l] * gi - sl[i][0][l] - sr[i][0][l];
        }
    for (ptrdiff_t i = 0; i < n - 1; i++)
        for (int l = 0; l < B; l++) {
            float dk = right[i + 1][0][l] * sl[i][0][l] - right[i + 1][1][l] * sl[i][1][l]
                     + left[i][0][l] * sr[i + 1][0][l] - left[i][1][l] * sr[i + 1][1][l];
            db[i][l] = c[i][l] * dk;
            dc[i][l] = b[i][l] * dk;
        }
}

void run(int times, int gradient, ptrdiff_t n, const lanes *a, const lanes *b, const lanes *c,
         float zr, float zi, lanes *k, complex_lanes *left, complex_lanes *right, complex_lanes *g,
         complex_lanes *w, complex_lanes *sl, complex_lanes *sr, lanes *da, lanes *db, lanes *dc) {
    for (; times > 0; times--) {
        forward(n, a, b, c, zr, zi, k, left, right, g);
        if (gradient) backward(n, b, c, k, left, right, g, w, sl, sr, da, db, dc);
    }
}
