"""Shared by the tests of ``vfejax plan``: films are not drawn."""

import pytest

from vfejax.cli.plan import pictures


@pytest.fixture(scope="module", autouse=True)
def blank_film():
    """The frames of a film are made but not drawn; gives the true function to those who want it."""
    true = pictures._gif
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "_gif", lambda pages: b"GIF89a" * len(list(pages)))
        yield true
