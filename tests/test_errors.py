from vfejax.errors import UserError


def test_message_is_what_is_printed():
    assert str(UserError("a.toml: no such key; remove it")) == "a.toml: no such key; remove it"
