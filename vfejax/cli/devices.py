"""Messages of a command about the devices that share its batches."""

__all__ = ["batch_remark"]


def batch_remark(batch_size: int, used: int, present: int, parts: int = 1) -> str:
    """How many devices have equal shares of a batch, and why no more, in one line.

    Args:
        batch_size: sequences of an update.
        used: devices that share them.
        present: how many there are.
        parts: how many parts of a batch are worked through one after the other.

    >>> batch_remark(16, 8, 8)
    'uses all 8 devices, which share the batch of 16'
    """
    divided = f"the batch of {batch_size}"
    if parts > 1:
        divided = f"the {batch_size // parts} sequences of each of the {parts} parts of a batch"
    if used == present:
        return f"uses all {present} devices, which share {divided}"
    multiple = present * parts
    larger = -(-batch_size // multiple) * multiple
    return (
        f"uses {used} of {present} devices, since no more of them have equal shares of {divided}; "
        f"--batch-size {larger}, or another multiple of {multiple}, uses all"
    )
