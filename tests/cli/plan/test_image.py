"""``vfejax plan --image``: whole tokens for the patches of a picture, and one line for what does
not fit.
"""

import json

import numpy as np
import pytest
from PIL import Image

from vfejax.cli.main import main
from vfejax.problems.important_region import draw_scene
from vfejax.runs import load

SMALL = ["--patch", "8", "--k-min", "4", "--k-max", "40", "--quiet"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A picture file, and what matters in it by patches of 8."""
    drawn = draw_scene(np.random.default_rng(0), 48, 64)
    file = tmp_path_factory.mktemp("pictures") / "scene.png"
    Image.fromarray(np.uint8(np.round(255 * drawn.picture))).save(file)
    return file, drawn.important.reshape(6, 8, 8, 8).mean(axis=(1, 3))


def plan(out, image, *options):
    assert main(["plan", "--image", str(image), "--out", str(out), *SMALL, *options]) == 0
    with np.load(out / "allocation.npz") as arrays:
        return {name: arrays[name] for name in arrays}, json.loads(
            (out / "summary.json").read_text()
        )


def test_tokens_go_where_the_query_is_and_sum_to_the_budget(scene, tmp_path):
    file, important = scene
    found, summary = plan(tmp_path / "run", file, "--query", "red", "--budget", "500")
    tokens = found["tokens"]
    assert tokens.shape == (6, 8)
    assert tokens.sum() == summary["budget"] == 500
    assert tokens.min() >= 4
    assert tokens.max() <= 40
    assert tokens[important > 0.9].min() > tokens[important == 0].max()
    assert found["textures"].shape == (6, 8, 13)
    np.testing.assert_allclose(found["probability"].sum(), 1.0, rtol=1e-5)
    for name in ("figures/allocation.png", "figures/messages.png", "report.html", "config.toml"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    run = load(tmp_path / "run")
    bound = run.metrics["elbo"]
    assert len(bound) == 9
    # float32
    assert np.all(np.diff(bound) >= -1e-6)
    assert bound[-1] <= summary["elbo_optimum_nats"] + 1e-5
    assert run.config["query"] == "red"


def test_a_run_goes_on_and_gives_the_same_tokens(scene, tmp_path):
    file, _ = scene
    whole, _ = plan(tmp_path / "whole", file, "--query", "red", "--steps", "6")
    plan(tmp_path / "cut", file, "--query", "red", "--steps", "4")
    assert (
        main(["plan", "--out", str(tmp_path / "cut"), "--resume", "--steps", "6", "--quiet"]) == 0
    )
    with np.load(tmp_path / "cut" / "allocation.npz") as arrays:
        np.testing.assert_array_equal(arrays["probability"], whole["probability"])
    read = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "cut")]
    assert read[0] == read[1]


def test_an_example_and_a_region_are_asked_for_like_a_colour(scene, tmp_path, monkeypatch):
    file, important = scene
    example = Image.fromarray(np.full((9, 7, 3), (217, 31, 26), np.uint8))
    example.save(tmp_path / "red.png")
    monkeypatch.chdir(tmp_path)
    found, summary = plan(tmp_path / "example", file, "--query", "red.png")
    assert found["tokens"][important > 0.9].min() > found["tokens"][important == 0].max()
    assert summary["query"] == "what red.png looks like"
    found, _ = plan(tmp_path / "region", file, "--query", "0,0,16,8", "--weights", "0", "0", "0")
    # Two patches have nine tenths of what is to spare, which is more than they may have.
    assert found["tokens"][0].tolist() == [40, 40, *found["tokens"][0, 2:]]
    assert found["tokens"].sum() == 6 * 8 * 8
    assert np.ptp(found["tokens"].ravel()[2:]) <= 1


def test_one_pixel_and_pictures_with_alpha_have_tokens_too(tmp_path):
    Image.fromarray(np.array([[[9, 9, 9, 0]]], np.uint8)).save(tmp_path / "one.png")
    found, summary = plan(tmp_path / "one", tmp_path / "one.png")
    assert found["tokens"].tolist() == [[8]]
    assert summary["query"] == "nothing"
    np.testing.assert_allclose(found["textures"][0, 0, :3], 1.0)  # on white


def test_what_does_not_fit_is_refused_in_one_line(scene, tmp_path, refused):
    file, _ = scene

    def no(arguments, *pieces, image=True):
        given = ["--image", file, *arguments] if image else arguments
        refused(tmp_path / "run", given, *pieces, command="plan")

    no(["--budget", "10"], "--budget 10: budget must be 384 to 2400 for 6 patches of 64 to 400")
    no(["--k-min", "500"], "--k-min 500: must be at most --k-max 400")
    no(["--query", "redd"], "--query redd: must be a colour", "region", "picture that exists")
    no(["--query", "x" * 300], "--query xxx", "must be a colour")
    no(["--query", "100,0,5,5"], "--query 100,0,5,5: must be a region", "64 x 48")
    no(["--patch", "0"], "--patch 0: must be at least 1")
    no(["--temperature", "0"], "--temperature 0.0: must be positive")
    no(["--weights", "1", "nan", "1"], "--weights 1.0 nan 1.0: must be three numbers")
    no(["--env", "tmaze"], "--env tmaze: must be left out with --image")
    no(["--budget", "10"], "--budget 10: must be left out without --image", image=False)
    refused(tmp_path / "run", ["--image", tmp_path / "no.png"], "no.png", command="plan")
    (tmp_path / "text.png").write_text("hello")
    refused(
        tmp_path / "run",
        ["--image", tmp_path / "text.png"],
        "text.png: is no picture",
        command="plan",
    )
