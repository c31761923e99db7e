"""Vocabularies: ids, round trips, what is unknown, what is stored."""

import chex
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfejax.data.corpus import load_text
from vfejax.data.ngrams import ngram_cross_entropy
from vfejax.data.vocabulary import KINDS, build
from vfejax.training.scores import bits_per_byte

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
    ids, nothing = words.encode(TEXT), words.encode("")
    chex.assert_type([ids, nothing], np.int32)
    chex.assert_rank([ids, nothing], 1)
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


@pytest.mark.parametrize(
    ("kind", "text", "ids", "expected"),
    [
        ("character", "b", [2, 0, 3], "bab"),
        ("word", "b", [2, 3], "b a b"),
        ("word", "b ", [2], "b a"),
        ("word", "b", [], "b"),
        ("word", "", [3], "b"),
        ("byte", "\udcff caf\udcc3", [0xA9 + 2, 0xFE + 2, 99], "\udcff caf\xe9\ufffda"),
        ("byte", "\udcff", [], "\udcff"),
    ],
)
def test_a_text_goes_on_with_what_ids_say(kind, text, ids, expected):
    # Bytes of the text that are not UTF-8 come back as they came; new ones are marked.
    assert (
        build(kind, "a b" if kind == "word" else "ab").extend(text, np.array(ids, int)) == expected
    )


def test_a_line_break_after_a_word_needs_no_space():
    assert build("word", "\n a").extend("a", np.array([2, 3])) == "a\na"


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("character", "abXc", "X"),
        ("character", "ab", None),
        ("word", "X", None),
        ("byte", "X", None),
    ],
)
def test_what_a_model_cannot_be_given_is_named(kind, text, expected):
    assert build(kind, "ab").unencodable(text) == expected


def test_nothing_is_left_to_spell_when_the_ids_say_the_text():
    assert build("byte", "").spelling_nats(TEXT) == 0
    assert build("character", TEXT).spelling_nats(TEXT) == 0


def test_unknown_characters_are_spelled_by_their_bytes():
    # Two bytes of 256: 1/256, then, since it is another one, 1/257.
    found = build("character", "ab").spelling_nats("a\xe9b")
    np.testing.assert_allclose(found, np.log(256 * 257), rtol=1e-12)


def test_unknown_words_and_unexpected_gaps_are_spelled():
    vocabulary = build("word", "a b")
    # Every choice is made by Laplace's rule: four gaps as expected cost 1/2 2/3 3/4 4/5 = 1/5.
    as_expected = np.log(5)
    np.testing.assert_allclose(vocabulary.spelling_nats("a b a"), as_expected, rtol=1e-12)
    # The unknown word is no literal <unk> (1/2), then c (1/257) and its end (1/258).
    spelled = as_expected + np.log(2) + np.log(257 * 258)
    np.testing.assert_allclose(vocabulary.spelling_nats("a b c"), spelled, rtol=1e-12)
    np.testing.assert_allclose(
        vocabulary.spelling_nats("a b <unk>"), as_expected + np.log(2), rtol=1e-12
    )
    # One of four gaps is another one (1/20 in any order): a tab (1/257) and its end (1/258).
    gap = np.log(20) + np.log(257 * 258)
    np.testing.assert_allclose(vocabulary.spelling_nats("a\tb a"), gap, rtol=1e-12)


@pytest.mark.parametrize(
    "text", [" a b", "a b ", "a  b", "a \n b", "a\n\n b", "a\x0bb", "\ta", " "]
)
def test_white_space_that_decoding_would_not_write_is_paid_for(text):
    vocabulary = build("word", "a b\n")
    assert vocabulary.decode(vocabulary.encode(text)) != text
    canonical = vocabulary.decode(vocabulary.encode(text))
    assert vocabulary.spelling_nats(text) > vocabulary.spelling_nats(canonical) + np.log(257)


def test_a_vocabulary_of_one_word_does_not_look_better_than_characters():
    """The same simple model, counts of pairs, reads English by characters and by words."""
    bits = {}
    for kind, max_words in (("character", None), ("word", 1), ("word", 20_000)):
        data = load_text(None, kind, length=64, max_words=max_words)
        valid = data.valid
        nats = ngram_cross_entropy(data.train.tokens, valid.tokens, data.vocabulary.size, 2)
        size, spelled = (len(valid.tokens), valid.num_bytes), valid.spelling_nats
        bits[kind, max_words] = bits_per_byte(nats, *size, spelled)
        if max_words == 1:  # which the figure would be if unknown words were free
            assert bits_per_byte(nats, *size) < 0.2
    assert 3 < bits["word", 20_000] < bits["character", None] < 4 < bits["word", 1]


def test_build_refuses_what_it_cannot_build():
    with pytest.raises(
        ValueError, match=r"^kind must be one of byte, character, word, got 'letter'$"
    ):
        build("letter", "a")
    with pytest.raises(ValueError, match=r"^max_words must be at least 1, got 0$"):
        build("word", "a", max_words=0)
