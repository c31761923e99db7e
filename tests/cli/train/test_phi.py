"""``vfejax train --phi`` and ``vfejax generate --phi``: a pretrained model learns in the layers
that were swapped, and its other weights are not copied into the run.
"""

import json
import shutil

import jax
import numpy as np
import pytest

from vfejax.cli.main import main
from vfejax.data.pretrained import PretrainedTokenizer
from vfejax.models import phi
from vfejax.models.phi.config import from_json
from vfejax.models.phi.model import build
from vfejax.runs import checkpoint
from vfejax.runs.load import BEST, load

pytestmark = pytest.mark.usefixtures("library_promotion")

SMALL = {
    "model_type": "phi",
    "vocab_size": 260,
    "hidden_size": 16,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
}
TINY = [
    *("--length", "8", "--batch-size", "4", "--eval-windows", "6", "--warmup-steps", "2"),
    *("--steps", "4", "--log-every", "2", "--eval-every", "4", "--checkpoint-every", "2"),
    *("--learning-rate", "0.02", "--sample-tokens", "0", "--final-windows", "6"),
    *("--swap.depth", "2", "--swap.fusion", "low-rank", "--swap.rank", "2"),
]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A directory with a model, and a text."""
    folder = tmp_path_factory.mktemp("pretrained")
    model = build(from_json(SMALL))
    rng, first = np.random.default_rng(0), jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(x.dtype), first)
    config = SMALL | {"architectures": ["PhiForCausalLM"]}
    phi.save(folder / "phi", model._replace(config=from_json(config)), params)
    (folder / "text.txt").write_text("The quick brown fox.\n" * 30)
    return folder


def train(pretrained, out, *flags):
    given = ["--phi", str(pretrained / "phi"), "--text", str(pretrained / "text.txt"), *TINY]
    return main(["train", "--out", str(out), "--quiet", *given, *flags])


@pytest.fixture(scope="module")
def finished(pretrained, tmp_path_factory, library_promotion):
    out = tmp_path_factory.mktemp("finished") / "run"
    assert train(pretrained, out) == 0
    return out


def test_only_the_swapped_layer_learns_and_only_it_is_stored(finished, pretrained):
    run = load(finished)
    start_model, start = phi.load(pretrained / "phi", length=8)
    _, start = phi.swap_attention(start_model, start, [1], depth=2, fusion="low-rank", rank=2)
    mask = phi.trainable(run.model, run.params)
    changed = jax.tree.map(
        lambda x, y: bool(np.any(np.asarray(x) != np.asarray(y))), run.params, start
    )
    assert not any(jax.tree.leaves(jax.tree.map(lambda moved, m: moved and not m, changed, mask)))
    assert changed["segments"][1]["block"]["fusion"][0]
    learning = sum(jax.tree.leaves(jax.tree.map(lambda x, m: m * x.nbytes, run.params, mask)))
    stored = json.loads((finished / "checkpoints" / "00000004" / "record.json").read_text())
    shapes = [shape for _, _, shape in stored["content"]["leaves"]]
    assert not any(260 in shape for shape in shapes)  # neither the embedding nor its moments
    total = sum(int(np.prod(shape)) for shape in shapes) * 4
    assert total < 3 * learning + 200
    assert checkpoint.steps(finished / BEST)
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["model"] == "phi"
    losses = run.metrics["valid_loss"]
    assert losses[-1] < losses[0]
    assert "bits_per_byte" in summary["valid"]


@pytest.mark.slow
def test_a_run_is_resumed_bit_for_bit_with_the_model_elsewhere(finished, pretrained, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(out / "checkpoints" / "00000004")
    moved = shutil.copytree(pretrained / "phi", tmp_path / "elsewhere")
    flags = ["--out", str(out), "--resume", "--quiet", "--phi", str(moved)]
    assert main(["train", *flags]) == 0
    whole, parts = load(finished), load(out)
    jax.tree.map(np.testing.assert_array_equal, parts.params, whole.params)
    assert (out / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()
    assert parts.config["phi"] == str(moved)


@pytest.mark.slow
def test_a_run_generates_and_is_evaluated(finished, capfd):
    arguments = ["--run", str(finished), "--seed", "1"]
    assert main(["generate", *arguments, "--prompt", "The", "--tokens", "5"]) == 0
    assert capfd.readouterr().out.startswith("The")
    assert main(["evaluate", *arguments, "--windows", "3"]) == 0
    assert "loss_nats_per_token" in capfd.readouterr().out


def generate(pretrained, *flags):
    arguments = ["--phi", str(pretrained / "phi"), "--tokens", "12", "--prompt", "fox"]
    return main(["generate", *arguments, *map(str, flags)])


def test_a_pretrained_model_writes_bytes(pretrained, capfd):
    assert generate(pretrained) == 0
    text = capfd.readouterr().out
    assert text.startswith("fox")
    assert len(text) > len("fox\n")


@pytest.mark.slow
def test_a_pretrained_model_writes_the_tokens_of_its_file(pretrained, tmp_path, capfd):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = {"fox": 0, "quick": 1, "brown": 2, "[UNK]": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert generate(pretrained, "--tokenizer", tmp_path / "tokenizer.json") == 0
    written = capfd.readouterr().out.split()
    assert len(written) == 13  # only the words: rows without a token are never drawn
    assert set(written) <= {"fox", "quick", "brown"}


def test_a_changed_model_is_noticed(finished, pretrained, tmp_path, refused):
    out = shutil.copytree(finished, tmp_path / "run")
    spoiled = shutil.copytree(pretrained / "phi", tmp_path / "phi")
    content = bytearray((spoiled / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (spoiled / "model.safetensors").write_bytes(bytes(content))
    flags = ["--resume", "--steps", "6", "--phi", spoiled]
    refused(out, flags, "--phi", "model.safetensors: changed since", command="train")


def test_a_tokenizer_that_the_run_was_not_made_with_is_refused(finished, pretrained, refused):
    flags = ["--resume", "--tokenizer", pretrained / "text.txt"]
    refused(finished, flags, "--tokenizer: the run in", "made without it", command="train")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "phi"], "--model phi: must be another one, or --phi must name a directory"),
        (["--tokenizer", "x.json"], "x.json: must be left out without --phi"),
        (["--phi", "nowhere"], "nowhere"),
        (
            ["--phi", "PHI", "--length", "8", "--swap.depth", "3"],
            "depth must be a divisor of the 2 heads: 1, 2, got 3",
        ),
        (
            ["--phi", "PHI", "--length", "8", "--swap.layers", "0", "5"],
            "layers must be numbers from 0 to 1, got 5",
        ),
        (
            ["--phi", "PHI", "--length", "8", "--swap.circumference", "6"],
            "--swap.circumference 6: must be at least --length 8",
        ),
        (["--phi", "PHI", "--length", "25"], "the model reads 1 to 24 tokens, not 25"),
        (["--phi", "PHI", "--synthetic.kind", "uniform"], "none when --phi is given"),
    ],
)
def test_what_does_not_fit_is_one_line(flags, message, pretrained, tmp_path, refused):
    flags = [str(pretrained / "phi") if flag == "PHI" else flag for flag in flags]
    refused(tmp_path / "run", flags, message, command="train")
    assert not (tmp_path / "run").exists()


def test_a_pretrained_tokenizer_keeps_the_ids_of_its_file():
    from vfejax.data import tokenizers
    from vfejax.errors import UserError

    held = tokenizers.read_pretrained(None, 256)
    assert held.encode("a\u00e9").tolist() == [97, 0xC3, 0xA9]
    assert (held.padding_id, held.unknown_id) == (255, None)
    assert tokenizers.from_json(held.to_json()) == held
    assert isinstance(held, PretrainedTokenizer)
    assert tokenizers.never_drawn(tokenizers.read_pretrained(None, 258)) == (256, 257)
    with pytest.raises(UserError, match="has 256 ids and the model rows for 19"):
        tokenizers.read_pretrained(None, 19)
