"""Another compression of the same teacher, which is shown beside the stages of this one."""

import math
from typing import Any

from vfejax import runs
from vfejax.cli.compress.config import CompressConfig
from vfejax.cli.compress.teacher import Teacher
from vfejax.errors import UserError
from vfejax.runs import inputs as run_inputs

__all__ = ["read"]


def read(config: CompressConfig, teacher: Teacher) -> dict[str, Any] | None:
    """The last row of the run of ``--beside``, as its summary has it; None without that option.

    Raises:
        UserError: for what is no finished compression, and for one of another teacher, or that was
            judged by other windows.
    """
    place = config.beside
    if place is None:
        return None
    run = runs.load(place)
    stages = (run.summary or {}).get("stages")
    if "rounded_share" not in run.config or not stages:
        raise UserError(f"--beside {place}: is no finished run of vfejax compress; give one")
    try:
        run_inputs.check(place, {"run": run_inputs.Content(str(config.run), teacher.checksum)})
    except UserError as error:
        raise UserError(
            f"--beside {place}: was made from another teacher than {config.run}; give a run that "
            "was made from it"
        ) from error
    windows = run.config["final_windows"]
    if windows != config.final_windows:
        raise UserError(
            f"--beside {place}: was judged by --final-windows {windows}; give the same here"
        )
    last = dict(stages[-1])
    if not math.isfinite(last["loss"]):
        raise UserError(f"--beside {place}: its loss is {last['loss']}; give another run")
    return last | {"stage": f"beside, {run.config['order']}"}
