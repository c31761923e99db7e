"""Message passing on a grid of binary variables whose rows lie on several devices, partitioned by
XLA: bytes per device and exchanges of a large program that is compiled only, and a small one that
runs, beside a single device. Prints one line of JSON.

    python benchmarks/claim_rows/sharded.py 16 32768

``belief_propagation`` knows nothing of devices: the sharding of its input is all that is said.
"""

import json
import os
import sys

DEVICES, SIDE = (int(x) for x in sys.argv[1:])
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec  # noqa: E402

from vfejax.inference.loopy import belief_propagation, potts  # noqa: E402

SMALL = 16 * DEVICES


def beliefs(nodes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Beliefs after ten floods, and the free energy."""
    pair = potts(jnp.float32(1.4), 2)
    found, info = belief_propagation(nodes, pair, pair, max_steps=10)
    return found, info.bethe_free_energy


def main() -> None:
    """Compile the large program, run the small one, print."""
    mesh = jax.make_mesh((DEVICES,), ("rows",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("rows"))
    nodes = jax.ShapeDtypeStruct((SIDE, SIDE, 2), jnp.float32, sharding=rows)
    compiled = jax.jit(beliefs).lower(nodes).compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    small = np.random.default_rng(0).standard_normal((SMALL, SMALL, 2)).astype(np.float32)
    apart, energy = jax.jit(beliefs)(jax.device_put(small, rows))
    alone, expected = jax.jit(beliefs)(jnp.asarray(small))
    found = {
        "states": SIDE * SIDE,
        "bytes": memory.temp_size_in_bytes
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes,
        "exchanges": text.count("collective-permute(") + text.count("all-gather("),
        "error": float(np.abs(np.asarray(apart) - np.asarray(alone)).max()),
        "energy_error": float(abs(energy - expected) / abs(expected)),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
