import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.models.blocks import normal
from vfejax.numerics import at_least_float32
from vfejax.spectral.gates import tridiagonal_sweep
from vfejax.spectral.recurrence import linear_recurrence

OPT = {"conv": 0, "stable": True, "reach": 50.0, "phase": 3.14159, "gain": 1.0, "channel": False, "norm": True}
_SLOWEST = 1e-4


def _inverse_softplus(x):
    return jnp.log(jnp.expm1(x))


class Base(nnx.Module):
    extra = 0

    def __init__(self, dim, heads, config, dtype, rngs):
        real = at_least_float32(dtype)
        kinds = {"use_bias": False, "dtype": dtype, "param_dtype": real, "rngs": rngs}
        self.real, self.groups = real, heads
        self.heads = dim if OPT["channel"] == "full" else heads
        heads = self.heads
        self.o = dict(OPT)
        self.levels = nnx.Linear(dim, self.num_levels * heads, kernel_init=normal(0.02 * OPT["gain"]), dtype=real, param_dtype=real, rngs=rngs)
        n = dim if OPT["channel"] == "static" else heads
        place = (jnp.arange(n, dtype=real) * ((5.0**0.5 - 1.0) / 2.0)) % 1.0
        self.rate = nnx.Param(_inverse_softplus(OPT["reach"] ** (-place)))
        if self.complex:
            self.phase = nnx.Param(jnp.linspace(0.0, OPT["phase"], n, dtype=real))
        if OPT["conv"]:
            self.kernel_conv = nnx.Param(normal(0.02)(rngs.params(), (OPT["conv"], dim), real).at[-1].add(1.0))
        self.values = nnx.Linear(dim, dim, kernel_init=normal(0.02), **kinds)
        self.gate = nnx.Linear(dim, dim, kernel_init=normal(0.02), **kinds)
        parts = 2 if self.complex else 1
        self.scale = nnx.Param(jnp.ones((self.groups, parts * dim // self.groups), real))
        self.out = nnx.Linear(parts * dim, dim, kernel_init=normal(0.02 / (2 * config.layers) ** 0.5), **kinds)

    complex = True
    num_levels = 2

    def gates(self, levels):
        # levels [b, n, heads, num_levels]
        level, phase = levels[..., 0], levels[..., 1]
        rate, first = self.rate[...], self.phase[...]
        if self.o["channel"] == "static":
            c = rate.shape[0] // self.groups
            level, phase = (jnp.repeat(v, c, axis=-1) for v in (level, phase))
        decay = _SLOWEST + jax.nn.softplus(level + rate)
        a = jnp.exp(-decay)
        turn = phase + first
        a = jax.lax.complex(a * jnp.cos(turn), a * jnp.sin(turn))
        return a, jnp.sqrt(-jnp.expm1(-2 * decay))

    def conv(self, states):
        if not self.o["conv"]:
            return states
        w = self.kernel_conv[...].astype(states.dtype)
        k = w.shape[0]
        padded = jnp.pad(states, ((0, 0), (k - 1, 0), (0, 0)))
        n = states.shape[1]
        return sum(padded[:, i:i + n] * w[i] for i in range(k))

    def __call__(self, states):
        h = self.conv(states)
        levels = self.levels(h).reshape(*h.shape[:-1], self.heads, self.num_levels)
        u = self.values(h).astype(self.real)
        a, root = self.gates(levels)
        m = a.shape[-1]
        u = u.reshape(*u.shape[:-1], m, -1) * root[..., None]
        y, eff = self.sweep(a, levels, u)
        y = y.reshape(*y.shape[:2], self.groups, -1)
        parts = jnp.concatenate([y.real, y.imag], axis=-1) if self.complex else y
        parts = parts * jax.lax.rsqrt(jnp.mean(parts * parts, axis=-1, keepdims=True) + 1e-5) * self.scale[...]
        gate = nnx.silu(self.gate(states)).reshape(*parts.shape[:-1], -1)
        if self.complex:
            gate = jnp.concatenate([gate, gate], axis=-1)
        return self.out((parts.astype(gate.dtype) * gate).reshape(*states.shape[:-1], -1)), jnp.swapaxes(eff, 1, 2)


class Gate(Base):
    def sweep(self, a, levels, u):
        y = linear_recurrence(a[..., None], u.astype(a.dtype), axis=1)
        return y, a


class RGLRU(Base):
    complex = False

    def gates(self, levels):
        decay = _SLOWEST + 8 * jax.nn.softplus(self.rate[...]) / 8 * 2 * jax.nn.sigmoid(levels[..., 0])
        return jnp.exp(-decay), jnp.sqrt(-jnp.expm1(-2 * decay)) * 2 * jax.nn.sigmoid(levels[..., 1])

    def sweep(self, a, levels, u):
        return linear_recurrence(a[..., None], u, axis=1), a


class Tri(Base):
    num_levels = 4

    def sweep(self, a, levels, u):
        re, im = levels[..., 2], levels[..., 3]
        if self.o["channel"] == "static":
            c = self.rate.shape[0] // self.groups
            re, im = (jnp.repeat(v, c, axis=-1) for v in (re, im))
        shrink = 0.25 / jnp.sqrt(1 + re * re + im * im)
        b = jax.lax.complex(re * shrink, im * shrink)
        k = -(b * a)
        size = k.real**2 + k.imag**2
        size = jnp.where(size == 0, 0.0, jnp.sqrt(jnp.where(size == 0, 1.0, size)))
        d = (1 + size if self.o["stable"] else jnp.ones_like(size)).astype(a.dtype)
        s = lambda v: jnp.swapaxes(v, 1, 2)
        out = tridiagonal_sweep(s(d), s(b), s(-a), s(u).astype(a.dtype))
        return s(out.output), a * s(out.left)
