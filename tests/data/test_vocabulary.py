"""Vocabularies: ids, round trips, what is unknown, what is stored."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfejax.data import vocabulary
from vfejax.data.vocabulary import Vocabulary, build
from vfejax.errors import UserError

KINDS = ("byte", "character", "word")
TEXT = "the cat,\n\n  the  dog\tand\r\nthe cat \U0001f408 é"
PROPERTY = settings(max_examples=100, deadline=None, derandomize=True, database=None)


def test_bytes_are_utf8_behind_two_special_ids():
    words = build("byte", "any text")
    assert words.size == 258
    assert words == build("byte", "another")
    np.testing.assert_array_equal(words.encode("aé\0"), [99, 0xC3 + 2, 0xA9 + 2, 2])


def test_characters_are_numbered_by_code_point():
    words = build("character", "banana\U0001f408é")
    assert words.symbols == ("a", "b", "n", "é", "\U0001f408")
    assert words.size == 7
    np.testing.assert_array_equal(words.encode("n\U0001f408xab\U0010ffff"), [4, 6, 1, 2, 3, 1])


def test_words_are_numbered_by_frequency_then_code_points():
    words = build("word", TEXT)
    assert words.symbols == ("\n", "the", "and", "cat", "cat,", "dog", "é", "\U0001f408")
    np.testing.assert_array_equal(words.encode("the dog\n\n and\tthe bird"), [3, 7, 2, 2, 4, 3, 1])


def test_words_beyond_the_cap_are_unknown():
    words = build("word", "b a a c b", max_words=2)
    assert words.symbols == ("a", "b")
    np.testing.assert_array_equal(words.encode("a b c"), [2, 3, 1])
    assert build("word", "c b a", max_words=2).symbols == ("a", "b")
    assert build("character", "c b a", max_words=2).size == 6


def test_a_literal_unk_is_the_unknown_word():
    words = build("word", "<unk> a <unk> b")
    assert words.symbols == ("a", "b")
    np.testing.assert_array_equal(words.encode("<unk> a"), [words.unknown_id, 2])
    assert words.decode(np.array([2, words.unknown_id, 3])) == "a <unk> b"


def test_line_ends_count_as_words_as_in_wikitext():
    # One token per word and one per line: what <eos> is in published figures.
    text = " \n = Title = \n \n A <unk> . \n"
    assert len(build("word", text).encode(text)) == sum(
        len(line.split()) + 1 for line in text.splitlines()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_int32_and_the_special_ones_are_the_same_in_every_kind(kind):
    words = build(kind, TEXT)
    for text in (TEXT, ""):
        ids = words.encode(text)
        assert ids.dtype == np.int32
        assert ids.ndim == 1
    ids = words.encode(TEXT)
    assert (words.padding_id, words.unknown_id) == (0, 1)
    assert 2 <= ids.min() <= ids.max() < words.size
    assert words.decode(np.array([0, 0], np.int32)) == words.decode(ids[:0]) == ""


@PROPERTY
@given(st.text())
def test_bytes_and_characters_return_any_text(text):
    for kind in ("byte", "character"):
        words = build(kind, text)
        ids = words.encode(text)
        assert words.decode(ids) == text
        assert words.decode(np.stack([ids, 0 * ids], axis=1).reshape(-1)) == text


@PROPERTY
@given(st.text(), st.text())
def test_characters_outside_the_training_text_become_the_replacement_character(seen, asked):
    words = build("character", seen)
    assert words.decode(words.encode(asked)) == "".join(c if c in seen else "\ufffd" for c in asked)


@PROPERTY
@given(
    st.text(st.sampled_from("ab<unk> \n\t\r\x1c\x85\xa0\u2028")), st.text(st.sampled_from("abc \n"))
)
def test_words_return_up_to_white_space(seen, asked):
    words = build("word", seen)
    decoded = words.decode(words.encode(seen))
    assert [line.split() for line in decoded.split("\n")] == [
        line.split() for line in seen.split("\n")
    ]
    np.testing.assert_array_equal(words.encode(decoded), words.encode(seen))
    np.testing.assert_array_equal(
        words.encode(words.decode(words.encode(asked))), words.encode(asked)
    )


def test_words_are_joined_by_single_spaces_and_lines_by_their_breaks():
    words = build("word", TEXT)
    assert words.decode(words.encode(TEXT)) == "the cat,\n\nthe dog and\nthe cat \U0001f408 é"


def test_bytes_that_are_not_utf8_and_unknown_ones_become_replacement_characters():
    words = build("byte", "")
    assert (
        words.decode(np.array([99, 0xC3 + 2, 100, 0xFF + 2, 1, 0, 101])) == "a\ufffdb\ufffd\ufffdc"
    )
    # A shell argument b"\xff" arrives as "\udcff".
    np.testing.assert_array_equal(words.encode("\udcff"), [0xFF + 2])


def test_characters_take_lone_surrogates_for_unknown():
    np.testing.assert_array_equal(build("character", "a").encode("a\udcff"), [2, 1])


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_may_be_any_integers(kind, dtype):
    words = build(kind, "a b")
    ids = words.encode("a b")
    assert words.decode(np.array([1, *ids]).astype(dtype)) == words.decode(np.array([1, *ids]))


@pytest.mark.parametrize("ids", [[-1], [4], [[2, 3]], [2.0], 2])
def test_ids_of_another_kind_are_refused(ids):
    with pytest.raises(ValueError, match=r"^ids must"):
        build("character", "ab").decode(np.array(ids))


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_vocabulary_is_the_same(kind, tmp_path):
    words = build(kind, TEXT)
    assert Vocabulary.from_mapping(json.loads(json.dumps(words.to_mapping()))) == words
    words.save(tmp_path / "vocabulary.json")
    assert vocabulary.load(tmp_path / "vocabulary.json") == words


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "Expecting value"),
        ('{"kind": "word", "symb', "Unterminated"),
        ("[]", "mapping"),
        ('{"kind": "word"}', "keys kind and symbols"),
        ('{"kind": "word", "symbols": [], "more": 1}', "keys kind and symbols"),
        (
            '{"kind": "words", "symbols": []}',
            "kind must be one of byte, character, word, got 'words'",
        ),
        ('{"kind": [], "symbols": []}', "kind must be a string"),
        ('{"kind": "word", "symbols": "ab"}', "symbols a list"),
        ('{"kind": "word", "symbols": [["a"]]}', "cannot hold"),
        ('{"kind": "word", "symbols": ["a", "a"]}', "distinct"),
        ('{"kind": "word", "symbols": ["a b"]}', "cannot hold 'a b'"),
        ('{"kind": "word", "symbols": ["<unk>"]}', "cannot hold '<unk>'"),
        ('{"kind": "character", "symbols": ["a", ""]}', "cannot hold ''"),
        ('{"kind": "character", "symbols": ["ab"]}', "cannot hold 'ab'"),
        ('{"kind": "byte", "symbols": ["00", "01"]}', "all 256 bytes"),
        ('{"kind": "byte", "symbols": ["0x0"]}', "cannot hold '0x0'"),
    ],
)
def test_a_damaged_vocabulary_is_one_line_that_names_the_file(content, message, tmp_path):
    path = tmp_path / "vocabulary.json"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        vocabulary.load(path)
    assert str(caught.value).startswith(f"{path} is no vocabulary: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_vocabulary_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"vocabulary.json does not exist"):
        vocabulary.load(tmp_path / "vocabulary.json")


def test_build_refuses_what_it_cannot_build():
    with pytest.raises(
        ValueError, match=r"^kind must be one of byte, character, word, got 'letter'$"
    ):
        build("letter", "a")
    with pytest.raises(ValueError, match=r"^max_words must be at least 1, got 0$"):
        build("word", "a", max_words=0)
