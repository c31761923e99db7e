import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vfejax.errors import UserError
from vfejax.runs import checkpoint, checkpoint_record


class State(NamedTuple):
    position: dict
    optimizer: tuple
    key: jax.Array
    count: jax.Array


def make_state(seed=0, size=4):
    rng = np.random.default_rng(seed)
    position = {
        "f32": jnp.asarray(rng.normal(size=(size, 3)), jnp.float32),
        "f64": jnp.asarray(rng.normal(size=size)),
    }
    return State(position, optax.adam(0.1).init(position), jax.random.key(seed), jnp.int32(seed))


def bits(tree):
    leaves = [
        jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in jax.tree.leaves(tree)
    ]
    return [(str(x.dtype), x.shape, np.asarray(x).tobytes()) for x in leaves]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    for step in (10, 20, 30):
        checkpoint.save(path, step, make_state(step), {"step": step})
    return path


@pytest.fixture
def run(saved, tmp_path):
    """A run with checkpoints at steps 10, 20 and 30."""
    return shutil.copytree(saved, tmp_path, dirs_exist_ok=True)


def damage(path):
    """Flip one bit."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def largest_file(path):
    return max(
        (file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size
    )


def test_state_of_an_optimiser_returns_bit_for_bit(run):
    state, meta = checkpoint.restore(run, make_state(0))
    assert jax.tree.structure(state) == jax.tree.structure(make_state(30))
    assert bits(state) == bits(make_state(30))
    assert meta == {"step": 30}
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(
    "array",
    [
        np.array([0.1, -0.0, np.inf, -np.inf, np.nan, 1e-45], np.float32),
        np.array([0.1, -0.0, np.inf, -np.inf, np.nan, 5e-324], np.float64),
        np.array([-(2**31), 0, 2**31 - 1], np.int32),
        np.array([-(2**63), 0, 2**63 - 1], np.int64),
        np.array([0, 2**32 - 1], np.uint32),
        np.array([True, False]),
        np.array([1 + 2j, -0.0j], np.complex64),
        np.zeros((2, 3)),
        np.zeros((0, 3), np.float32),
        np.asarray(3.5),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_every_bit_survives_in_numpy_and_jax(tmp_path, array):
    # Two NaNs may differ in their payload; -0.0 and 0.0 differ in one bit.
    if array.dtype == np.float64 and array.shape == (6,):
        array.view(np.uint64)[4] = 0x7FF8_0000_DEAD_BEEF
    state = {"numpy": array, "jax": jnp.asarray(array)}
    checkpoint.save(tmp_path, 0, state, {})
    restored, _ = checkpoint.restore(tmp_path, state)
    assert bits(restored) == bits(state)
    assert isinstance(restored["numpy"], np.ndarray)
    assert isinstance(restored["jax"], jax.Array)


def test_bfloat16_bare_arrays_and_numpy_scalars(tmp_path):
    for step, state in enumerate(
        [jnp.asarray([0.1, 3.0], jnp.bfloat16), {"s": np.float64(0.1)}, {}]
    ):
        checkpoint.save(tmp_path, step, state, {})
        restored, _ = checkpoint.restore(tmp_path, state)
        assert jax.tree.structure(restored) == jax.tree.structure(state)
        assert bits(restored) == bits(state)


def test_template_may_be_abstract(tmp_path):
    state = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.zeros((0, 2))}
    checkpoint.save(tmp_path, 1, state, {})
    restored, _ = checkpoint.restore(tmp_path, jax.eval_shape(lambda: state))
    assert bits(restored) == bits(state)


def test_meta_survives_exactly(tmp_path):
    meta = {
        "third": 1 / 3,
        "tiny": 5e-324,
        "big": 2**70,
        "inf": float("inf"),
        "text": "é\n",
        "none": None,
        "list": [1, 2.5, True],
        "d": {"x": {}},
    }
    checkpoint.save(tmp_path, 1, {"a": jnp.zeros(1)}, meta)
    assert checkpoint.restore(tmp_path, {"a": jnp.zeros(1)})[1] == meta


def test_steps_and_latest(run, tmp_path):
    assert checkpoint.steps(run) == [10, 20, 30]
    assert checkpoint.latest_step(run) == 30
    assert checkpoint.steps(tmp_path / "nowhere") == []
    assert checkpoint.latest_step(tmp_path / "nowhere") is None


def test_only_the_newest_stay(run):
    checkpoint.save(run, 40, make_state(40), {})
    assert checkpoint.steps(run) == [20, 30, 40]
    checkpoint.save(run, 50, make_state(50), {}, keep=1)
    assert checkpoint.steps(run) == [50]
    assert os.listdir(run / "checkpoints") == ["00000050"]


def test_same_step_is_replaced(run):
    checkpoint.save(run, 30, make_state(31), {"again": True})
    state, meta = checkpoint.restore(run, make_state())
    assert bits(state) == bits(make_state(31))
    assert meta == {"again": True}
    assert sorted(os.listdir(run / "checkpoints")) == ["00000010", "00000020", "00000030"]


def test_older_step_can_be_restored_and_later_ones_discarded(run):
    state, meta = checkpoint.restore(run, make_state(), 20)
    assert bits(state) == bits(make_state(20))
    assert meta == {"step": 20}
    checkpoint.discard_after(run, 20)
    assert checkpoint.steps(run) == [10, 20]


def test_pieces_of_a_killed_process_are_ignored_and_swept(run):
    folder = run / "checkpoints"
    # As a kill leaves them: while orbax writes, before the rename, while an old one is removed,
    # between the renames of a replacement.
    shutil.copytree(folder / "00000030", folder / "00000040.new.orbax-checkpoint-tmp")
    shutil.copytree(folder / "00000030", folder / "00000040.new")
    shutil.copytree(folder / "00000030", folder / "00000005.removed")
    (folder / "00000020").rename(folder / "00000020.replaced")
    shutil.copytree(folder / "00000030", folder / "00000030.replaced")
    (folder / "notes").mkdir()
    assert checkpoint.steps(run) == [10, 20, 30]
    assert bits(checkpoint.restore(run, make_state(), 20)[0]) == bits(make_state(20))
    checkpoint.save(run, 40, make_state(40), {}, keep=4)
    assert sorted(os.listdir(folder)) == [
        "00000010",
        "00000020.replaced",
        "00000030",
        "00000040",
        "notes",
    ]
    checkpoint.save(run, 20, make_state(21), {}, keep=4)
    assert sorted(os.listdir(folder)) == ["00000010", "00000020", "00000030", "00000040", "notes"]


def test_failed_write_leaves_the_earlier_ones(run, monkeypatch):
    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_record", fail)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(run, 30, make_state(31), {})
    assert sorted(os.listdir(run / "checkpoints")) == ["00000010", "00000020", "00000030"]
    assert bits(checkpoint.restore(run, make_state())[0]) == bits(make_state(30))


HARMS = {
    "a flipped bit in the arrays": lambda path: damage(largest_file(path / "state")),
    "a flipped bit in the record": lambda path: damage(path / "record.json"),
    "a file cut in half": lambda path: largest_file(path).write_bytes(b""),
    "a missing array file": lambda path: largest_file(path / "state").unlink(),
    "a missing record": lambda path: (path / "record.json").unlink(),
    "a missing state": lambda path: shutil.rmtree(path / "state"),
    "a record of something else": lambda path: (path / "record.json").write_text("[]"),
    "an empty directory": lambda path: [shutil.rmtree(path), path.mkdir()],
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_damage_is_named_with_the_step_that_is_left(run, harm, capfd):
    latest = run / "checkpoints" / "00000030"
    harm(latest)
    with pytest.raises(
        UserError,
        match=rf"^cannot use checkpoint {latest}: .*; delete {latest} to resume from step 20$",
    ) as caught:
        checkpoint.restore(run, make_state())
    assert "\n" not in str(caught.value)
    shutil.rmtree(latest)
    assert bits(checkpoint.restore(run, make_state())[0]) == bits(make_state(20))
    assert capfd.readouterr() == ("", "")


def test_remedy_steps_over_other_damaged_ones(run):
    for step in (20, 30):
        damage(largest_file(run / "checkpoints" / f"{step:08d}" / "state"))
    with pytest.raises(
        UserError, match=r"delete \S*00000020 and \S*00000030 to resume from step 10$"
    ):
        checkpoint.restore(run, make_state())
    damage(largest_file(run / "checkpoints" / "00000010" / "state"))
    with pytest.raises(
        UserError, match=r"no older one can be used, so begin a new run with another --out$"
    ):
        checkpoint.restore(run, make_state())


def test_damage_that_only_orbax_notices_is_a_user_error(run, monkeypatch, capfd):
    monkeypatch.setattr(
        checkpoint_record,
        "_checksums",
        lambda path: json.loads((path / "record.json").read_text())["content"]["files"],
    )
    shutil.rmtree(run / "checkpoints" / "00000030" / "state")
    with pytest.raises(UserError, match=r"orbax cannot read it .*resume from step 20$"):
        checkpoint.restore(run, make_state())
    assert capfd.readouterr() == ("", "")


def test_misfit_names_the_leaf_and_both_types(run):
    checkpoint.save(run, 40, make_state(40, size=5), {})
    with pytest.raises(
        UserError,
        match=r"\(state.position\['f32'\] is float32\[5,3\], not float32\[4,3\]\)",
    ) as caught:
        checkpoint.restore(run, make_state())
    assert str(caught.value).endswith("to resume from step 30")
    checkpoint.discard_after(run, 30)
    # Where none fits, the settings have changed, and the run is whole.
    with pytest.raises(
        UserError,
        match=r"vfejax changed since it was saved; put back those that it was saved with$",
    ):
        checkpoint.restore(run, make_state(size=5))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"a": np.zeros(2, np.float32)}, r"state\['a'\] is float64\[2\], not float32\[2\]"),
        ({"a": np.zeros(2), "b": np.zeros(1)}, r"state\['b'\] is absent, not float64\[1\]"),
        ({}, r"state\['a'\] is float64\[2\], not absent"),
    ],
)
def test_template_of_another_type_or_tree_is_refused(tmp_path, template, message):
    checkpoint.save(tmp_path, 1, {"a": np.zeros(2)}, {})
    with pytest.raises(UserError, match=message):
        checkpoint.restore(tmp_path, template)


def test_missing_checkpoints_are_named(run, tmp_path):
    with pytest.raises(UserError, match="has no checkpoint of step 15; it has steps 10, 20, 30"):
        checkpoint.restore(run, make_state(), 15)
    with pytest.raises(
        UserError, match="nowhere has no checkpoint; give the directory of a run that has"
    ):
        checkpoint.restore(tmp_path / "nowhere", make_state())


@pytest.mark.parametrize(
    ("state", "meta", "options", "error"),
    [
        ({"a": 1.0}, {}, {}, TypeError),
        ({"a": np.zeros(1)}, {"x": object()}, {}, TypeError),
        ({"a": np.zeros(1)}, {}, {"keep": 0}, ValueError),
        ({"a": np.zeros(1)}, {}, {"step": -1}, ValueError),
    ],
)
def test_misuse_is_refused_before_anything_is_written(tmp_path, state, meta, options, error):
    with pytest.raises(error):
        checkpoint.save(tmp_path, options.get("step", 1), state, meta, keep=options.get("keep", 3))
    assert os.listdir(tmp_path) == []


def test_terminal_stays_quiet_and_logging_as_it_was(run, capfd):
    logger = logging.getLogger("absl")
    handler = logging.StreamHandler()
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        checkpoint.save(run, 40, make_state(40), {})
        checkpoint.restore(run, make_state())
        assert logger.level == logging.DEBUG
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_importing_the_module_does_not_import_orbax():
    code = "import sys, vfejax.runs.checkpoint; print('orbax' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=100
        ).stdout
        == "False\n"
    )


FULL_DISK = """
import resource, sys
import numpy as np
from vfejax.runs import checkpoint
state = {f"a{i}": np.random.default_rng(i).normal(size=30000) for i in range(6)}
checkpoint.save(sys.argv[1], 1, state, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    checkpoint.save(sys.argv[1], 2, state, {})
except Exception as error:
    print(type(error).__name__, error)
restored, _ = checkpoint.restore(sys.argv[1], state)
print(checkpoint.steps(sys.argv[1]), all((restored[name] == state[name]).all() for name in state))
"""


@pytest.mark.slow  # tests/runs/test_directory.py fills the disk by default
def test_full_disk_is_one_line_and_keeps_the_earlier_checkpoint(tmp_path):
    command = [sys.executable, "-W", "error", "-c", FULL_DISK, str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert answer.stderr == ""
    assert answer.stdout == (
        f"UserError cannot write {tmp_path}/checkpoints/00000002: File too large; "
        "free some space or choose another place with --out\n[1] True\n"
    )
    assert os.listdir(tmp_path / "checkpoints") == ["00000001"]


def test_failure_within_orbax_is_a_user_error_with_its_reason(tmp_path, monkeypatch, capfd):
    import orbax.checkpoint as ocp

    def save(*arguments, **options):
        raise ValueError(
            "OUT_OF_RANGE: Error writing \"a/0\" in OCDBT database\n: No space [os_error_code='28']"
        )

    monkeypatch.setattr(ocp.Checkpointer, "save", save)
    with pytest.raises(
        UserError, match="checkpoints/00000001: No space left on device; free some space"
    ):
        checkpoint.save(tmp_path, 1, {"a": np.zeros(3)}, {})
    assert os.listdir(tmp_path / "checkpoints") == []
    assert capfd.readouterr() == ("", "")


def test_every_moment_of_a_save_leaves_usable_checkpoints(tmp_path, monkeypatch):
    run, moments = tmp_path / "run", tmp_path / "moments"
    for step in (1, 2):
        checkpoint.save(run, step, {"a": np.full(3, step)}, {"value": step}, keep=2)
    copying = threading.Lock()

    def watched(name):
        original = getattr(os, name)

        def act(*arguments, **options):
            if copying.acquire(blocking=False):  # the copy makes directories itself
                with contextlib.suppress(shutil.Error, OSError):  # orbax's threads write meanwhile
                    shutil.copytree(run, moments / f"{len(os.listdir(moments)):03d}")
                copying.release()
            return original(*arguments, **options)

        return act

    moments.mkdir()
    with monkeypatch.context() as patch:
        for name in ("mkdir", "rename", "replace", "unlink", "rmdir"):
            patch.setattr(os, name, watched(name))
        checkpoint.save(run, 2, {"a": np.full(3, 22)}, {"value": 22}, keep=2)
        checkpoint.save(run, 3, {"a": np.full(3, 3)}, {"value": 3}, keep=2)
    seen = set()
    for moment in sorted(moments.iterdir()):
        steps = checkpoint.steps(moment)
        assert len(steps) >= 2  # never fewer than there were
        names = tuple(sorted(os.listdir(moment / "checkpoints")))
        if names in seen:
            continue
        seen.add(names)
        for step in steps:
            state, meta = checkpoint.restore(moment, {"a": np.zeros(3, int)}, step)
            assert meta["value"] in ({2, 22} if step == 2 else {step})
            np.testing.assert_array_equal(state["a"], np.full(3, meta["value"]))
    # The moments were really caught: while writing, between the renames of a replacement, while
    # removing.
    assert any("00000002.new" in names and "00000002.replaced" in names for names in seen)
    assert any("00000003.new" in names for names in seen)
    assert any("00000001.removed" in names for names in seen)


SAVE_FOR_EVER = """
import itertools, sys
import numpy as np
from vfejax.runs import checkpoint
for step in itertools.count(1):
    state = {"a": np.full((200, 200), step), "b": np.full(3, step)}
    checkpoint.save(sys.argv[1], step, state, {"value": step})
"""


@pytest.mark.slow  # the test above stops a save at every moment
def test_killed_while_saving_leaves_a_usable_checkpoint(tmp_path):
    template = {"a": np.zeros((200, 200), int), "b": np.zeros(3, int)}
    with subprocess.Popen([sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path)]) as process:
        while (checkpoint.latest_step(tmp_path) or 0) < 5 and process.poll() is None:
            time.sleep(0.003)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    steps = checkpoint.steps(tmp_path)
    assert len(steps) >= 3
    for step in steps:
        state, meta = checkpoint.restore(tmp_path, template, step)
        assert meta == {"value": step}
        np.testing.assert_array_equal(state["a"], np.full((200, 200), step))
        np.testing.assert_array_equal(state["b"], np.full(3, step))
    checkpoint.save(tmp_path, steps[-1] + 1, template, {})
    assert all(name.isdigit() for name in os.listdir(tmp_path / "checkpoints"))


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, {"x": np.zeros(3)}, {}, keep=1)
    read = checkpoint_record.read_record
    calls = []

    def replaced(path):
        calls.append(path.name)
        if len(calls) == 1:  # another process saves a newer one, which removes this one
            checkpoint.save(tmp_path, 2, {"x": np.ones(3)}, {}, keep=1)
        if len(calls) == 2:  # and then the same step anew
            checkpoint.save(tmp_path, 2, {"x": np.full(3, 2.0)}, {}, keep=1)
            raise checkpoint_record.Damaged("file a is missing")
        return read(path)

    monkeypatch.setattr(checkpoint, "read_record", replaced)
    state, _ = checkpoint.restore(tmp_path, {"x": np.empty(3)})
    assert state["x"].tolist() == [2.0] * 3
    assert calls == ["00000001", "00000002", "00000002"]


def test_protected_steps_stay_and_others_can_be_cleared(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, {}, {}, keep=1, protect=(1,))
    assert checkpoint.steps(tmp_path) == [1, 3]
    checkpoint.keep_only(tmp_path, 1)
    assert checkpoint.steps(tmp_path) == [1]
    folder = tmp_path / "checkpoints"
    (folder / "00000004.new").mkdir()
    (folder / "00000003.removed").mkdir()
    (folder / "mine.txt").write_text("mine")
    checkpoint.sweep(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["00000001", "mine.txt"]
    checkpoint.clear(folder)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("step", [np.int64(7), jnp.int32(7)], ids=["numpy", "jax"])
def test_a_step_may_be_a_number_of_an_array(step, tmp_path):
    checkpoint.save(tmp_path, step, {"x": np.ones(2)}, {})
    assert checkpoint.steps(tmp_path) == [7]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_numbers_of_64_bits_are_not_rounded_to_32(dtype, tmp_path):
    """Whatever the template was made with; those of NumPy are what they are in any mode."""
    checkpoint.save(tmp_path, 1, {"x": jnp.ones(2, jnp.float64) / 3, "y": np.ones(1)}, {})
    template = {"x": jax.ShapeDtypeStruct((2,), dtype), "y": np.ones(1)}
    message = r"state\['x'\] is float64\[2\], and JAX is not in 64-bit mode; .*JAX_ENABLE_X64=1$"
    with jax.enable_x64(False):
        with pytest.raises(UserError, match=message):
            checkpoint.restore(tmp_path, template)
        found, _ = checkpoint.restore(tmp_path, {"x": np.ones(2), "y": np.ones(1)})
    np.testing.assert_array_equal(found["x"], np.ones(2) / 3)
