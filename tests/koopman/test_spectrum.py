"""Spectra of systems whose eigenvalues are known: found, told from spurious ones, and forecast."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.koopman import dictionaries, operators, spectrum, streaming
from vfejax.problems import known_spectra


def statistics(lift, now, following):
    z, following = lift(now), lift(following)
    factor = streaming.init(z.shape[1], following.shape[1], dtype=z.dtype)
    return streaming.update(factor, z, following)


@jax.jit
def fitted(now, following):
    """Statistics of observables, and the map of least squares."""
    factor = statistics(lambda x: x, now, following)
    return factor, operators.ridge(factor)


@jax.jit
def logistic_fit(now, following):
    factor = statistics(dictionaries.harmonics(15), now, following)
    return operators.reduced_rank(factor, 2 * 10 + 1, 1e-6 * factor.count)


def test_logistic_map_has_its_spectrum():
    true = known_spectra.logistic_spectrum(10)
    # Ostruszka's operator with order 10; the values are those that others print.
    np.testing.assert_allclose(true[1], -0.19334 + 0.19094j, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.abs(true[3:5]), [0.02665, 0.02212], rtol=0, atol=1e-5)
    pairs = (jnp.asarray(x, jnp.float32) for x in known_spectra.logistic_pairs(10_000))
    values = spectrum.eig(logistic_fit(*pairs)).values
    assert spectrum.directed_hausdorff_distance(values[:3], true) < 0.02
    assert spectrum.directed_hausdorff_distance(true[:3], values) < 0.02


def test_trajectory_of_the_logistic_map_has_its_noise():
    x = np.asarray(known_spectra.logistic_map(jax.random.key(0), 4_000), np.float64)[:, 0]
    noise = x[1:] - 4.0 * x[:-1] * (1.0 - x[:-1])
    # The characteristic function of the density; a standard error is 0.004 and less.
    np.testing.assert_allclose(np.mean(np.cos(2 * np.pi * noise)), 10 / 11, rtol=0, atol=0.015)
    np.testing.assert_allclose(np.mean(np.cos(4 * np.pi * noise)), 15 / 22, rtol=0, atol=0.03)


def closed(x):
    return jnp.stack([x[..., 0], x[..., 1], x[..., 0] ** 2], axis=-1)


@jax.jit
def slow_manifold_factors(now, held_out, frequencies):
    def more(x):
        """Five observables that close, and ten that do not."""
        waves = jnp.sin(x @ frequencies.T + 0.5)
        products = jnp.stack([x[:, 0] * x[:, 1], x[:, 0] ** 3], axis=-1)
        return jnp.concatenate([closed(x), products, waves], axis=-1)

    step = known_spectra.slow_manifold
    single = statistics(closed, now.astype(jnp.float32), step(now.astype(jnp.float32)))
    train, test = (statistics(more, x, step(x)) for x in (now, held_out))
    return single, operators.ridge(single), train, operators.ridge(train), test


def test_slow_manifold_is_exact_and_every_spurious_pair_is_flagged(rng):
    now, held_out = jnp.asarray(rng.uniform(-1.0, 1.0, size=(2, 400, 2)))
    frequencies = jnp.asarray(rng.uniform(1.0, 4.0, size=(10, 2)))
    single, operator, train, more, test = slow_manifold_factors(now, held_out, frequencies)
    found = spectrum.eig(operator)
    # Rounding of float32, 6e-8, at a condition number of the observables of about 4.
    np.testing.assert_allclose(found.values, [0.9, 0.81, 0.5], rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        spectrum.residuals(single, found.values, found.functions), 0, rtol=0, atol=1e-5
    )

    found = spectrum.eig(more)
    errors = spectrum.residuals(test, found.values, found.functions)
    order = np.argsort(errors)
    true = np.array([0.9, 0.81, 0.729, 0.5, 0.45])
    assert spectrum.directed_hausdorff_distance(true, found.values[order[:5]]) < 1e-8
    assert np.all(errors[order[5:]] > max(5 * errors[order[4]], 1e-3))  # all ten
    # No function of the dictionary does better at an eigenvalue than its eigenfunction does.
    least = spectrum.pseudospectrum(test, found.values)
    assert np.all(least <= errors + 1e-9)
    # On the data that were fitted, a residual is what the three matrices of products say.
    sums = jax.tree.map(np.asarray, streaming.moments(train))
    i, w = order[-1], found.functions[:, order[-1]]
    value = found.values[i]
    square = (
        w.conj()
        @ (
            sums.following
            - value * sums.cross
            - np.conj(value) * sums.cross.T
            + abs(value) ** 2 * sums.now
        )
        @ w
        / (w.conj() @ sums.now @ w)
    )
    np.testing.assert_allclose(
        spectrum.residuals(train, found.values, found.functions)[i] ** 2, square.real, rtol=1e-6
    )


def test_residual_of_an_eigenpair_without_noise_is_what_the_data_say(rng):
    now = rng.normal(size=(30, 3))
    following = now @ rng.normal(size=(3, 3)) + 0.1 * rng.normal(size=(30, 3))
    factor, operator = fitted(now, following)
    found = spectrum.eig(operator)
    before, after = now @ found.functions, following @ found.functions
    expected = np.linalg.norm(after - found.values * before, axis=0) / np.linalg.norm(
        before, axis=0
    )
    np.testing.assert_allclose(
        spectrum.residuals(factor, found.values, found.functions), expected, rtol=1e-10
    )
    nothing = spectrum.residuals(factor, [0.5], np.zeros((3, 1)))  # and no warning
    assert np.isnan(nothing).all()
    # Least over all functions: no random one is better.
    point = 0.3 + 0.4j
    some = rng.normal(size=(3, 200)) + 1j * rng.normal(size=(3, 200))
    others = spectrum.residuals(factor, np.full(200, point), some)
    assert spectrum.pseudospectrum(factor, point) <= others.min()


@jax.jit
def noisy_fits(key, operator):
    def one(key):
        keys = jax.random.split(key, 3)
        x = jax.random.normal(keys[0], (10_000, 2), jnp.float32)
        noise = 0.3 * jax.random.normal(keys[1], (2, 10_000, 2), jnp.float32)
        factor = streaming.init(2)
        factor = streaming.update(factor, x + noise[0], x @ operator.T + noise[1])
        return (
            factor,
            operators.ridge(factor),
            operators.total_least_squares(factor),
            operators.noise_corrected(factor, 0.3**2),
        )

    return jax.lax.map(one, jax.random.split(key, 20))


def test_total_least_squares_has_a_twentieth_of_the_bias_of_noise():
    turn = 0.98 * np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    factors, *fits = noisy_fits(jax.random.key(1), jnp.asarray(turn, jnp.float32))
    factors = jax.device_get(factors)
    geometric = [
        operators.forward_backward(jax.tree.map(lambda a, i=i: a[i], factors)) for i in range(20)
    ]
    plain, total, corrected, both = (
        np.mean(np.abs(np.linalg.eigvals(np.asarray(fit)))) - 0.98
        for fit in (*fits, np.stack(geometric))
    )
    # r / (1 + s^2) - r. The mean over 20 trials has a standard error of 0.0005.
    assert abs(plain - (0.98 / 1.09 - 0.98)) < 0.002
    assert abs(total) < abs(plain) / 20
    assert abs(corrected) < abs(plain) / 20
    # The covariances of now and following differ, so a bias of sqrt(1.0504 / 1.09) - r stays.
    assert abs(both - (np.sqrt((0.98**2 + 0.09) / 1.09) - 0.98)) < 0.002


def test_reduced_rank_keeps_the_leading_part(rng):
    now = rng.normal(size=(50, 4))
    following = now @ rng.normal(size=(4, 2)) @ rng.normal(size=(2, 3))

    @jax.jit
    def maps(now, following):
        factor, full = fitted(now, following)
        low, one = operators.reduced_rank(factor, 2), operators.reduced_rank(factor, 1, 0.1)
        return full, low, one, operators.ridge(factor, 0.1)

    full, low, one, ridge = jax.device_get(maps(now, following))
    np.testing.assert_allclose(low, full, rtol=0, atol=1e-12)
    assert np.linalg.matrix_rank(one, tol=1e-10) == 1
    # Best of its rank: the error of predictions is the second singular value of those of ridge.
    penalised = np.concatenate([now, np.sqrt(0.1) * np.eye(4)])
    target = np.concatenate([following, np.zeros((4, 3))])
    best = penalised @ ridge.T
    left = np.linalg.norm(target - best) ** 2 + np.sum(np.linalg.svd(best)[1][1:] ** 2)
    np.testing.assert_allclose(np.linalg.norm(target - penalised @ one.T) ** 2, left, rtol=1e-10)


def test_rotating_system_is_tracked_under_forgetting():
    states, angle = known_spectra.rotating_system(1001, dt=0.1)

    @jax.jit
    def track(states):
        def step(factor, pair):
            factor = streaming.update(factor, *pair, forgetting=0.9)
            return factor, operators.ridge(factor)

        pairs = (states[:-1].reshape(100, 10, 2), states[1:].reshape(100, 10, 2))
        return jax.lax.scan(step, streaming.init(2, dtype=states.dtype), pairs)[1]

    values = np.linalg.eigvals(np.asarray(track(states)))
    found = np.max(np.angle(values), axis=1)
    # The mean age of what is remembered is 10 steps, in which the angle grows by 0.01.
    np.testing.assert_allclose(
        found[5:], np.asarray(angle)[59::10] - 0.0009 * 10, rtol=0, atol=0.005
    )
    np.testing.assert_allclose(np.abs(values[5:]), 1.0, rtol=0, atol=1e-3)


def test_forecast_applies_the_power_of_the_operator_and_never_lifts_again_unasked(rng):
    operator, state = rng.normal(size=(3, 3)), rng.normal(size=(2, 3))
    found = spectrum.forecast(operator, state, 8)
    for p in (1, 2, 4, 8):
        expected = state @ np.linalg.matrix_power(operator, p).T
        np.testing.assert_allclose(found[p - 1], expected, rtol=1e-10)
    again = spectrum.forecast(operator, state, 2, lift_fn=lambda z: 2.0 * z)
    np.testing.assert_allclose(again[1], 4.0 * found[1], rtol=1e-12)
    wide = spectrum.forecast(operator, jnp.asarray(state, jnp.float32), 2)
    assert wide.dtype == jnp.float64
    np.testing.assert_allclose(wide, found[:2], rtol=0, atol=1e-5)


def test_modes_and_functions_expand_the_state(rng):
    operator = rng.normal(size=(4, 4))
    found = spectrum.eig(operator)
    assert np.all(np.diff(np.abs(found.values)) <= 1e-12)
    np.testing.assert_allclose(
        operator @ found.modes, found.modes * found.values, rtol=0, atol=1e-12
    )
    z = rng.normal(size=4)
    moved = (found.modes * found.values) @ (z @ found.functions)
    np.testing.assert_allclose(moved, operator @ z, rtol=0, atol=1e-12)


def test_eigenvalues_are_in_order_in_any_unit():
    values = np.array([-3.0, 2.0, 1.0])
    for unit in (1e-14, 1.0, 1e14):
        np.testing.assert_array_equal(
            spectrum.eig(np.diag(unit * values[::-1])).values, unit * values
        )
    assert spectrum.eig(np.zeros((2, 2))).values.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spectrum.eig(np.ones((2, 3))), "operator must be square"),
        (lambda: spectrum.eig(np.full((2, 2), np.nan)), "operator must be finite"),
        (lambda: spectrum.eig(1j * np.eye(2)), "operator must be real"),
        (lambda: spectrum.time_scales([0.5], 0.0), "dt must be above 0, got 0.0"),
        (
            lambda: spectrum.pseudospectrum(statistics(np.asarray, np.eye(2), np.eye(2)), np.nan),
            "points must be finite",
        ),
        (
            lambda: spectrum.residuals(streaming.init(2, 3), [1.0], np.ones((2, 1))),
            "one dictionary, got 2 and 3",
        ),
        (
            lambda: spectrum.forecast(np.eye(2), np.ones(2), 1, lambda z: z[:1]),
            r"lift_fn must return observables \(2,\)",
        ),
        (
            lambda: spectrum.forecast(np.eye(2), np.ones(3), 1),
            "operator .* and state .* must fit",
        ),
        (lambda: spectrum.forecast(np.eye(2), np.ones(2), -1), "steps must not be negative"),
        (lambda: spectrum.pseudospectrum(streaming.init(2), 0.0), "0 samples cannot determine"),
        (lambda: spectrum.pseudospectrum(streaming.init(2, 3), 0.0), "one dictionary"),
        (lambda: spectrum.residuals(streaming.init(2), [1.0], np.eye(2)), "must fit, got shapes"),
        (lambda: spectrum.directed_hausdorff_distance([], [1.0]), "got 0 estimated and 1 true"),
        (lambda: known_spectra.logistic_map(jax.random.key(0), 3, 0), "order must be at least 1"),
        (lambda: dictionaries.polynomials(0, 1), "dim must be at least 1, got 0"),
        (lambda: dictionaries.harmonics(1, 0.0), "period must be above 0, got 0.0"),
        (lambda: dictionaries.polynomials(2, 1)(np.ones(3)), r"x must be states \[..., 2\]"),
        (lambda: dictionaries.radial(np.ones(3), 1.0), r"centres must be \[d, n\]"),
        (lambda: dictionaries.radial(np.ones((3, 1)), 0.0), "width must be above 0"),
        (lambda: dictionaries.delays(np.ones((3, 1)), 4), "num must be in 1 .. 3"),
        (lambda: dictionaries.random_fourier(jax.random.key(0), 1, 3, -1.0), "length must be"),
        (lambda: dictionaries.concatenate(), "at least one dictionary"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_dictionaries_lift_any_stack_of_states_in_their_precision(dtype, rng):
    x, centres = (rng.normal(size=shape).astype(dtype) for shape in ((2, 5, 2), (4, 2)))

    @jax.jit
    def lift_both(x, centres):
        lift = dictionaries.concatenate(
            dictionaries.polynomials(2, 3, constant=False),
            dictionaries.radial(centres, np.float64(0.7)),
            dictionaries.random_fourier(
                jax.random.key(0), 2, np.int64(6), np.float64(1.0), dtype=dtype
            ),
            lambda x: dictionaries.harmonics(1, np.float64(2.0))(x[..., :1]),
        )
        return lift(x), lift(x[1, 2])

    z, single = jax.device_get(lift_both(x, centres))
    assert z.shape == (2, 5, 9 + 4 + 6 + 3)
    assert z.dtype == dtype
    np.testing.assert_allclose(z[1, 2], single, rtol=1e-5)
    np.testing.assert_allclose(z[..., 7], x[..., 0] * x[..., 1] ** 2, rtol=1e-5)
    apart = np.sum((x[..., None, :] - centres) ** 2, axis=-1)
    np.testing.assert_allclose(z[..., 9:13], np.exp(-apart / 0.98), rtol=1e-4)
