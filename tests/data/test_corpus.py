"""Corpora: what is read, how it is cut, and one line for every file that cannot be used."""

import contextlib
import os
import pydoc_data.topics
import sys
from pathlib import Path

import chex
import numpy as np
import pytest

from vfejax.data import vocabulary
from vfejax.data.corpus import load_split, load_text, split_files
from vfejax.errors import UserError

TEXT = "".join(chr(97 + i * i % 23) for i in range(200))
LENGTH = 4


@contextlib.contextmanager
def _refused(start, *pieces):
    """The body must raise a UserError of one line that begins with ``start`` and holds the
    pieces.
    """
    with pytest.raises(UserError) as caught:
        yield
    message = str(caught.value)
    assert message.startswith(str(start))
    assert "\n" not in message
    assert [piece for piece in pieces if piece not in message] == []


def test_help_topics_are_the_default():
    corpus = load_text(None, length=64)
    topics = pydoc_data.topics.topics
    text = corpus.vocabulary.decode(np.concatenate([corpus.train.tokens, corpus.valid.tokens]))
    joined = "\n".join(topics[key] for key in sorted(topics))
    assert text == joined
    assert len(text) > 100_000
    assert len(corpus.train.tokens) == int(0.9 * len(text))
    assert corpus.train.num_bytes + corpus.valid.num_bytes == len(joined.encode())
    assert (corpus.test, corpus.entropy_rate) == (None, None)


def test_a_python_without_help_topics_is_a_user_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with _refused("this Python comes without", "--text"):
        load_text(None, length=LENGTH)


@pytest.mark.parametrize("kind", ["byte", "character", "word"])
def test_a_file_is_cut_between_characters_and_nothing_is_normalised(kind, tmp_path):
    path = tmp_path / "a.txt"
    text = "é \r\n" * 50 + "\U0001f408\t\n" * 50
    path.write_bytes(text.encode())
    corpus = load_text(path, kind, length=LENGTH, valid_fraction=0.25)
    cut = int(0.75 * len(text))
    for split, part in ((corpus.train, text[:cut]), (corpus.valid, text[cut:])):
        np.testing.assert_array_equal(split.tokens, corpus.vocabulary.encode(part))
        chex.assert_type(split.tokens, np.int32)
        assert split.num_bytes == len(part.encode())
    assert corpus.name == str(path)
    if kind == "byte":
        assert corpus.valid.num_bytes == len(corpus.valid.tokens)


def test_vocabulary_comes_from_the_training_split_alone(tmp_path):
    (tmp_path / "a.txt").write_text("ab" * 45 + "abcdefghij")
    corpus = load_text(tmp_path / "a.txt", length=LENGTH)
    assert corpus.vocabulary.symbols == ("a", "b")
    np.testing.assert_array_equal(corpus.valid.tokens, [2, 3] + 8 * [corpus.vocabulary.unknown_id])


def test_cap_on_words_is_passed_on(tmp_path):
    (tmp_path / "a.txt").write_text("a b c a b a " * 10)
    assert load_text(tmp_path / "a.txt", "word", length=LENGTH, max_words=2).vocabulary.symbols == (
        "a",
        "b",
    )


def test_a_byte_order_mark_is_taken_off(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeff" + TEXT, encoding="utf-8")
    corpus = load_text(tmp_path / "a.txt", length=LENGTH)
    assert corpus.vocabulary.decode(corpus.train.tokens) == TEXT[:180]


@pytest.mark.parametrize(
    ("train", "valid", "test"),
    [
        ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
        ("wiki.train.raw", "wiki.valid.raw", "wiki.test.raw"),
        ("train.txt", "val.txt", "test.txt"),
        ("Training.txt", "my_validation.txt", None),
        ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"),
    ],
)
def test_splits_of_a_directory(train, valid, test, tmp_path):
    texts = {train: "a b\n" * 9, valid: "a c\n" * 3, test: "b d\n" * 4}
    for name, text in texts.items():
        if name is not None:
            (tmp_path / name).write_text(text)
    for name in ("README.md", "constraints.txt", "interval.txt", "latest.txt", ".train.txt.swp"):
        (tmp_path / name).write_text("not part of it")
    (tmp_path / "training_logs").mkdir()
    corpus = load_text(tmp_path, "word", length=LENGTH)
    assert set(corpus.vocabulary.symbols) == {"a", "b", "\n"}
    assert corpus.vocabulary.decode(corpus.valid.tokens) == "a <unk>\n" * 3
    assert corpus.name == str(tmp_path)
    assert corpus.train.num_bytes == 36
    assert (corpus.test is None) == (test is None)
    if test is not None:
        assert corpus.vocabulary.decode(corpus.test.tokens) == "b <unk>\n" * 4


@pytest.mark.parametrize(
    ("names", "pieces"),
    [
        ([], ["has no train file", "train.txt"]),
        (["a.txt"], ["has no train file", "single text file"]),
        (["train.txt"], ["has no valid file", "valid.txt"]),
        (["train.txt", "test.txt"], ["has no valid file"]),
        (
            ["wiki.train.raw", "wiki.train.tokens", "valid.txt"],
            ["more than one train", "wiki.train.raw, wiki.train.tok"],
        ),
        (
            ["train.txt", "val.txt", "valid.txt"],
            ["more than one valid file (val.txt, valid.txt)", "keep one"],
        ),
        (["train.txt", "valid.txt", "test1.txt", "test2.txt"], ["more than one test file"]),
    ],
)
def test_a_directory_without_the_right_files_is_refused(names, pieces, tmp_path):
    for name in names:
        (tmp_path / name).write_text(TEXT)
    with _refused(f"{tmp_path} has", *pieces):
        load_text(tmp_path, length=LENGTH)


def test_a_file_that_says_two_splits_is_refused(tmp_path):
    for name in ("train.txt", "valid.txt", "train-test.txt"):
        (tmp_path / name).write_text(TEXT)
    with _refused(tmp_path / "train-test.txt", "says test and train"):
        load_text(tmp_path, length=LENGTH)


BAD_FILES = {
    "empty": (b"", ["is empty", "give"]),
    "binary": (b"abc\0def" * 50, ["byte 3 is NUL", "binary"]),
    "utf-16": (TEXT.encode("utf-16"), ["byte 3 is NUL", "UTF-16", "convert"]),
    "latin-1": ("é".join([TEXT, TEXT]).encode("latin-1"), ["byte 200 is 0xe9", "UTF-8", "iconv"]),
    "cut off": (("\ufeff" + TEXT + "é").encode()[:-1], ["byte 203 is 0xc3", "UTF-8"]),
}


@pytest.mark.parametrize(("content", "pieces"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_named(content, pieces, tmp_path):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    words = vocabulary.build("character", TEXT)
    with _refused(path, *pieces):
        load_split(path, words)
    (tmp_path / "train.txt").write_text(TEXT)
    path.rename(tmp_path / "valid.txt")
    with _refused(tmp_path, *pieces):
        load_text(tmp_path, length=LENGTH)


@pytest.mark.parametrize("load", [load_text, lambda path, length: load_split(path, None)])
def test_files_that_cannot_be_opened_are_named(load, tmp_path, monkeypatch):
    with _refused(tmp_path / "no.txt", "does not exist", "check the path"):
        load(tmp_path / "no.txt", length=LENGTH)
    with _refused("'no\\x00.txt'", "NUL", "check the path"):
        load("no\0.txt", length=LENGTH)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with _refused(f"cannot read {tmp_path / 'loop'}: ", "check the path"):
        load(tmp_path / "loop", length=LENGTH)
    (tmp_path / "a.txt").write_text(TEXT)

    def forbid(path):
        raise PermissionError(13, "Permission denied")

    # A file without permissions is no obstacle to root, who may run the tests.
    monkeypatch.setattr(Path, "read_bytes", forbid)
    with _refused(f"cannot read {tmp_path / 'a.txt'}: Permission denied"):
        load(tmp_path / "a.txt", length=LENGTH)


def test_a_directory_is_no_single_text(tmp_path):
    with _refused(f"cannot read {tmp_path}: Is a directory"):
        load_split(tmp_path, vocabulary.build("byte", ""))


def test_what_a_run_could_not_read_again_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with _refused(tmp_path / "pipe", "no regular file", "save its content"):
        load_text(tmp_path / "pipe", length=LENGTH)
    name = tmp_path / os.fsdecode(b"caf\xe9.txt")
    name.write_text(TEXT)
    with _refused("'", "caf\\udce9.txt", "not UTF-8", "rename"):
        load_text(name, length=LENGTH)


def test_files_of_a_text_and_of_a_directory(tmp_path):
    (tmp_path / "train.txt").write_text(TEXT)
    (tmp_path / "valid.txt").write_text(TEXT)
    (tmp_path / "notes.txt").write_text("not part of it")
    assert split_files(tmp_path) == {
        "train": tmp_path / "train.txt",
        "valid": tmp_path / "valid.txt",
    }
    assert split_files(tmp_path / "notes.txt") == {"train": tmp_path / "notes.txt"}


def test_a_given_tokenizer_is_used_as_it_is(tmp_path):
    (tmp_path / "a.txt").write_text("!" + "ab" * 50)
    tokenizer = vocabulary.build("character", "ab")
    corpus = load_text(tmp_path / "a.txt", "word", length=LENGTH, tokenizer=tokenizer)
    assert corpus.vocabulary is tokenizer
    np.testing.assert_array_equal(corpus.train.tokens[:5], [1, 2, 3, 2, 3])
    assert corpus.train.spelling_nats > 0
    assert corpus.valid.spelling_nats == 0


@pytest.mark.parametrize("fraction", [-0.1, 0.0, 1e-20, 0.999, 1.0, 2.0, float("nan")])
def test_a_fraction_that_leaves_nothing_is_refused(fraction, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT[:100])
    with _refused(
        f"--valid-fraction {fraction:g} of",
        str(tmp_path / "a.txt"),
        "100 long",
        "choose another fraction",
    ):
        load_text(tmp_path / "a.txt", length=LENGTH, valid_fraction=fraction)


@pytest.mark.parametrize(("fraction", "part"), [(0.125, "valid"), (0.875, "train")])
def test_a_split_shorter_than_one_window_is_refused(fraction, part, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT[:80])
    with _refused(
        tmp_path / "a.txt",
        f"the {part} split has 10 tokens, fewer than the 11 of one window",
        "--length",
    ):
        load_text(tmp_path / "a.txt", length=10, valid_fraction=fraction)
    corpus = load_text(tmp_path / "a.txt", length=9, valid_fraction=fraction)
    assert len(getattr(corpus, part).tokens) == 10


def test_a_text_of_its_own_is_read_with_a_given_vocabulary(tmp_path):
    (tmp_path / "a.txt").write_text("abcé")
    split = load_split(tmp_path / "a.txt", vocabulary.build("character", "ab"))
    np.testing.assert_array_equal(split.tokens, [2, 3, 1, 1])
    assert split.num_bytes == 5


def test_a_text_of_one_token_has_nothing_to_predict(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with _refused(tmp_path / "a.txt", "has 1 tokens", "at least two"):
        load_split(tmp_path / "a.txt", vocabulary.build("character", "ab"))
