"""Limits of options: the line that names what is outside them."""

import pytest

from vfejax.cli.limits import check
from vfejax.errors import UserError


def test_check_names_flag_value_and_requirement():
    check(True, "steps", 3, "positive")
    with pytest.raises(UserError, match=r"^--steps -3: must be positive$"):
        check(False, "steps", -3, "positive")
