"""Every tokenizer keeps one contract: the three vocabularies, and files of the library."""

import json
import math
import sys

import chex
import numpy as np
import pytest
import tokenizers as library

from vfejax.data import subwords, tokenizers
from vfejax.data.subwords import SubwordTokenizer
from vfejax.data.vocabulary import KINDS
from vfejax.errors import UserError

TEXT = "the cat sat on the mat\nthe dog sat on the log, \xe9 \U0001f408\n" * 20


def _trained(model, trainer_type, pre_tokenizer=None, decoder=None, **options):
    tokenizer = library.Tokenizer(model)
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.train_from_iterator([TEXT], trainer_type(show_progress=False, **options))
    return json.loads(tokenizer.to_str())


@pytest.fixture(scope="module")
def contents():
    """JSON of a byte-level pair encoding, which says everything, and of one that does not."""
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    return {
        "byte-level": _trained(
            library.models.BPE(),
            library.trainers.BpeTrainer,
            library.pre_tokenizers.ByteLevel(add_prefix_space=False),
            library.decoders.ByteLevel(),
            vocab_size=300,
            initial_alphabet=alphabet,
        ),
        "with-unknown": _trained(
            library.models.BPE(unk_token="[UNK]"),
            library.trainers.BpeTrainer,
            decoder=library.decoders.Fuse(),
            vocab_size=60,
            special_tokens=["[UNK]"],
        ),
    }


@pytest.fixture(scope="module", params=[*KINDS, "byte-level", "with-unknown"])
def tokenizer(request, contents):
    if request.param in KINDS:
        return tokenizers.build(request.param, TEXT)
    return SubwordTokenizer(contents[request.param])


def test_ids_are_int32_within_the_size_and_no_text_holds_padding(tokenizer):
    ids = tokenizer.encode(TEXT)
    nothing = tokenizer.encode("")
    chex.assert_type([ids, nothing], np.int32)
    chex.assert_shape([ids, nothing], [(None,), (0,)])
    assert 0 <= ids.min() <= ids.max() < tokenizer.size
    assert tokenizer.padding_id not in ids


def test_a_known_text_comes_back_and_leaves_nothing_to_spell(tokenizer):
    ids = tokenizer.encode(TEXT)
    text = tokenizer.decode(ids)
    np.testing.assert_array_equal(tokenizer.encode(text), ids)
    padded = np.append(ids, [tokenizer.padding_id] * 3)
    assert tokenizer.decode(padded) == text
    assert tokenizer.unencodable(TEXT) is None
    assert text == TEXT
    # Words say for each gap that it is the expected one, which costs a logarithm of their number.
    assert 0 <= tokenizer.spelling_nats(TEXT) <= math.log(len(ids) + 2) + 1e-9


def test_a_text_goes_on_as_if_it_had_been_one(tokenizer):
    cut = TEXT.index(" on")
    ids = tokenizer.encode(TEXT[cut:])
    whole = tokenizer.extend(TEXT[:cut], ids)
    assert whole.split() == TEXT.split()
    assert tokenizer.extend("the", ids[:0]) == "the"


@pytest.mark.parametrize("ids", [[-1], [10**6], [[2, 3]], [2.0]])
def test_what_are_no_ids_is_refused(tokenizer, ids):
    with pytest.raises(ValueError, match=r"^ids must"):
        tokenizer.decode(np.array(ids))


def test_a_stored_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizers.save(tmp_path / "vocabulary.json", tokenizer)
    loaded = tokenizers.load(tmp_path / "vocabulary.json")
    assert loaded == tokenizer
    assert loaded.size == tokenizer.size
    np.testing.assert_array_equal(loaded.encode(TEXT), tokenizer.encode(TEXT))


def test_a_text_can_be_opened_and_shell_arguments_encoded(tokenizer):
    opening = tokenizers.opening(tokenizer)
    assert tokenizer.unencodable(opening) is None
    assert len(tokenizer.encode(opening)) == 1
    tokenizer.encode("caf\udce9 \ud800")
    assert tokenizer.padding_id in tokenizers.never_drawn(tokenizer)


def test_a_text_without_line_breaks_opens_with_a_symbol_it_has():
    assert tokenizers.opening(tokenizers.build("character", "ba")) == "a"
    assert tokenizers.opening(tokenizers.build("word", "b b a")) == "b"
    with pytest.raises(UserError, match="--prompt"):
        tokenizers.opening(tokenizers.build("word", ""))


def test_a_byte_level_encoding_has_no_unknown_symbol_and_spells_any_text(contents):
    tokenizer = SubwordTokenizer(contents["byte-level"])
    assert tokenizer.unknown_id is None
    assert tokenizers.never_drawn(tokenizer) == (0,)
    for text in ("\u4f60 never seen\t\r\n", "  two  spaces ", TEXT):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.spelling_nats(text) == 0
    # Ids are those of the library, behind padding.
    found = library.Tokenizer.from_str(json.dumps(contents["byte-level"])).encode("the cat").ids
    np.testing.assert_array_equal(tokenizer.encode("the cat"), np.array(found) + 1)
    assert tokenizer.size == len(contents["byte-level"]["model"]["vocab"]) + 1


def test_a_long_text_is_read_in_pieces_and_gives_the_same_ids(contents, monkeypatch):
    tokenizer = SubwordTokenizer(contents["byte-level"])
    text = "\n\n" + TEXT.replace(", ", "\n\n  ") + "\n \n"
    whole = tokenizer.encode(text)
    for size in (1, 30, 300):
        monkeypatch.setattr(subwords, "_PIECE", size)
        np.testing.assert_array_equal(tokenizer.encode(text), whole)
        assert tokenizer.spelling_nats(text) == tokenizer.spelling_nats(text, whole) == 0


def test_an_encoding_with_an_unknown_symbol_names_it_and_prints_no_bits(contents):
    tokenizer = SubwordTokenizer(contents["with-unknown"])
    ids = tokenizer.encode("the Qat")
    assert np.count_nonzero(ids == tokenizer.unknown_id) == 1
    assert tokenizer.unencodable("the Qat") == "Q"
    assert tokenizer.spelling_nats("the Qat") is None
    assert tokenizer.spelling_nats("the cat") == 0


def test_truncation_padding_and_special_tokens_of_the_file_are_left_out(contents):
    stored = library.Tokenizer.from_str(json.dumps(contents["byte-level"]))
    stored.enable_truncation(3)
    stored.enable_padding(length=9)
    stored.add_special_tokens(["<s>"])
    stored.post_processor = library.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", stored.token_to_id("<s>"))]
    )
    tokenizer = SubwordTokenizer(json.loads(stored.to_str()))
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.size == len(contents["byte-level"]["model"]["vocab"]) + 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "Expecting value"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "mapping"),
        ('{"kind": "word", "symb', "Unterminated"),
        ('{"kind": "word"}', "keys kind and symbols"),
        ('{"kind": "word", "symbols": [], "more": 1}', "keys kind and symbols"),
        (
            '{"kind": "words", "symbols": []}',
            "kind must be one of byte, character, word, tokenizers",
        ),
        ('{"kind": [], "symbols": []}', "string kind"),
        ('{"kind": "word", "symbols": "ab"}', "symbols a list"),
        ('{"kind": "word", "symbols": [["a"]]}', "cannot hold"),
        ('{"kind": "word", "symbols": ["a", "a"]}', "distinct"),
        ('{"kind": "word", "symbols": ["a b"]}', "cannot hold 'a b'"),
        ('{"kind": "word", "symbols": ["<unk>"]}', "cannot hold '<unk>'"),
        ('{"kind": "character", "symbols": ["a", ""]}', "cannot hold ''"),
        ('{"kind": "character", "symbols": ["ab"]}', "cannot hold 'ab'"),
        ('{"kind": "byte", "symbols": ["00", "01"]}', "all 256 bytes"),
        ('{"kind": "byte", "symbols": ["0x0"]}', "cannot hold '0x0'"),
        ('{"kind": "tokenizers"}', "keys kind and tokenizer"),
        ('{"kind": "tokenizers", "tokenizer": []}', "must be a mapping"),
        ('{"kind": "tokenizers", "tokenizer": {}}', "tokenizers cannot read it"),
    ],
)
def test_a_damaged_vocabulary_is_one_line_that_names_the_file(content, message, tmp_path):
    path = tmp_path / "vocabulary.json"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        tokenizers.load(path)
    assert str(caught.value).startswith(f"{path} is no vocabulary: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "--overwrite" not in str(caught.value)


def test_a_file_of_the_library_is_read_by_its_name_and_others_are_named(contents, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(contents["byte-level"]))
    assert tokenizers.build(str(path), "") == SubwordTokenizer(contents["byte-level"])
    for content in (
        "[]",
        '{"a": 1}',
        "nonsense",
        json.dumps({**contents["byte-level"], "model": 1}),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=r"tokenizer.json holds no tokenizer"):
            tokenizers.build(str(path), "")
    with pytest.raises(UserError, match=r"absent.json does not exist"):
        tokenizers.build(str(tmp_path / "absent.json"), "")
    with pytest.raises(UserError, match=r"vocabulary.json does not exist"):
        tokenizers.load(tmp_path / "vocabulary.json")


def test_an_installation_without_the_library_says_what_to_install(contents, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'vfejax\[tokenizers\]'"):
        SubwordTokenizer(contents["byte-level"])
