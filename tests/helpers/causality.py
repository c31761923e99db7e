"""What every next-token model must keep: no prediction knows a later token, or another sequence."""

import numpy as np


def assert_reads_only_the_past(apply_fn, tokens, vocab_size):
    """Change the tokens from t on: every earlier prediction stays the same to the last bit, and the
    prediction at t changes. Change one sequence: the others stay.

    ``apply_fn`` maps tokens ``[b, n]`` to logits ``[b, n, v]``.
    """
    before = np.asarray(apply_fn(tokens))
    length = tokens.shape[1]
    for t in sorted({1, length // 2, length - 1} - {0, length}):
        changed = tokens.copy()
        changed[:, t:] = (changed[:, t:] + 1 + np.arange(length - t)) % vocab_size
        after = np.asarray(apply_fn(changed))
        np.testing.assert_array_equal(before[:, :t], after[:, :t])
        assert not np.allclose(before[:, t], after[:, t])
    changed = tokens.copy()
    changed[0] = (changed[0] + 3) % vocab_size
    after = np.asarray(apply_fn(changed))
    np.testing.assert_array_equal(before[1:], after[1:])
    assert not np.allclose(before[0], after[0])
