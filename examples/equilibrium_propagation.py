"""A network that learns without backpropagation, beside the same network with it.

A layered Hopfield network reads a digit by settling: all units move to the minimum of one energy,
with the image held. To learn, the output is nudged towards the right answer, a little, and away
from it; between both ends every weight sees the difference of ``rho(s_below) rho(s_above)``, which
is all it needs (equilibrium propagation). Backpropagation through the same settling keeps every
step of it, and a plain network computes its output at once.

The digits are seven-segment digits at random places of a noisy image. No pixel means a digit by
itself, so that a hidden layer is needed, and how often the best possible classifier is right is
known.

    python examples/equilibrium_propagation.py

Source: Scellier and Bengio, Front. Comput. Neurosci. 11 (2017) 24; Laborieux et al., Front.
Neurosci. 15 (2021) 633674.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vfejax.energy import equilibrium, hopfield
from vfejax.energy.relaxation import alternating_descent, gradient_descent
from vfejax.figures.style import CURVES, GREY, label_right, new_figure, style_axes
from vfejax.problems import segment_digits

SIZE, NOISE_STD = 6, 0.2
SIZES = (SIZE**2, 128, 10)
BATCH = 20
# How far outputs are pushed, when a relaxation ends, and rates that are good for each.
BETA, TOLERANCE = 0.5, 1e-3
RATES = {"equilibrium propagation": 0.2, "backpropagation": 0.05, "plain network": 0.2}


def data(num_images):
    """Images ``[n, pixels]`` and labels of training and of test; the best possible accuracy."""
    rng = np.random.default_rng(0)
    both = [
        segment_digits.simulate(rng, n, size=SIZE, noise_std=NOISE_STD) for n in (num_images, 1000)
    ]
    best = segment_digits.posterior(both[1].pixels, NOISE_STD).argmax(axis=1) == both[1].labels
    return [(jnp.asarray(x.reshape(len(x), -1)), jnp.asarray(y)) for x, y in both], float(
        best.mean()
    )


def settling_network(method):
    """Start, gradient and outputs of a Hopfield network that learns by ``method``."""
    if method == "equilibrium propagation":
        units = hopfield.HARD
        relax = alternating_descent(1.0, 20, TOLERANCE, project=units.project)
        make = equilibrium.equilibrium_propagation
        nudging = (equilibrium.centred(BETA),)
    else:
        # Hard units at a limit pass nothing back; smooth ones do.
        units, nudging = hopfield.SOFT, ()
        relax = gradient_descent(0.5, 40, 0)
        make = equilibrium.backpropagation
    energy = hopfield.energy(units)
    learn = make(energy, hopfield.squared_error, relax, *nudging)

    def gradient(params, images, targets):
        return learn(params, images, targets, hopfield.rest(params, images, units))[1]

    def outputs(params, images):
        force = jax.grad(lambda state: jnp.sum(energy(params, state, images)))
        return relax(force, hopfield.rest(params, images, units)).state[-1]

    return lambda key: hopfield.init(key, SIZES), gradient, outputs


def plain_network():
    """Start, gradient and outputs of one layer of rectified units and a softmax."""

    def init(key):
        lower, upper = (
            jnp.sqrt(2.0 / m) * jax.random.normal(k, (m, n))
            for k, m, n in zip(jax.random.split(key), SIZES[:-1], SIZES[1:], strict=True)
        )
        return lower, jnp.zeros(SIZES[1]), upper, jnp.zeros(SIZES[2])

    def outputs(params, images):
        lower, low, upper, up = params
        return jax.nn.relu(images @ lower + low) @ upper + up

    def loss(params, images, targets):
        return jnp.mean(optax.softmax_cross_entropy(outputs(params, images), targets))

    return init, jax.grad(loss), outputs


def learn(method, train, test, num_epochs):
    """Accuracy on the test images after every epoch, ``[epochs]``."""
    init, gradient, outputs = (
        plain_network() if method == "plain network" else settling_network(method)
    )
    images, labels = train
    optimizer = optax.sgd(RATES[method])

    def update(carry, chosen):
        params, state = carry
        slope = gradient(params, images[chosen], jax.nn.one_hot(labels[chosen], SIZES[-1]))
        updates, state = optimizer.update(slope, state)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry, key):
        order = jax.random.permutation(key, len(labels))
        order = order[: len(labels) // BATCH * BATCH].reshape(-1, BATCH)
        carry, _ = jax.lax.scan(update, carry, order)
        return carry, jnp.mean(jnp.argmax(outputs(carry[0], test[0]), axis=-1) == test[1])

    @jax.jit
    def run(key):
        first, *keys = jax.random.split(key, num_epochs + 1)
        params = init(first)
        return jax.lax.scan(epoch, (params, optimizer.init(params)), jnp.stack(keys))[1]

    return np.asarray(run(jax.random.key(0)))


def draw(curves, best, images, labels):
    figure = new_figure(3.6)
    left, right = figure.subplots(1, 2, width_ratios=(1, 2))
    tiles = np.asarray(images[:12]).reshape(4, 3, SIZE, SIZE)
    left.imshow(np.block([list(row) for row in tiles]), cmap="Greys")
    left.set_axis_off()
    left.set_title("Digits: " + " ".join(str(x) for x in labels[:12]), fontsize=8.5)
    for colour, curve in zip(CURVES, curves.values(), strict=False):
        right.plot(np.arange(1, len(curve) + 1), 100 * curve, color=colour, linewidth=1.4)
    right.axhline(100 * best, color=GREY, linestyle="--", linewidth=1)
    ends = [(n, 100 * c[-1], k) for (n, c), k in zip(curves.items(), CURVES, strict=False)]
    style_axes(right, xlabel="epoch", ylabel="right, %", title="Test images; dashed: best possible")
    label_right(right, ends)
    return figure


def main(num_images=3000, num_epochs=30, out=Path("runs/examples")):
    """Learn by each method, print and draw into the folder ``out``.

    Returns the accuracy after every epoch by method, and the best possible one.
    """
    (train, test), best = data(num_images)
    curves = {}
    for method in RATES:
        curves[method] = learn(method, train, test, num_epochs)
        print(f"{method:<24} {100 * curves[method][-1]:5.1f} % of test images right")
    print(f"{'best possible':<24} {100 * best:5.1f} %")
    out.mkdir(parents=True, exist_ok=True)
    draw(curves, best, *test).savefig(out / "equilibrium_propagation.png")
    print(f"wrote {out / 'equilibrium_propagation.png'}")
    return curves, best


if __name__ == "__main__":
    main()
