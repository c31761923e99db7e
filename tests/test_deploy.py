"""Manifests: their commands are those of this version, and the probe knows a dead loop."""

import json
import runpy
import shlex
import time
from importlib import import_module
from pathlib import Path

import pytest
import yaml

DEPLOY = Path(__file__).parents[1] / "deploy"


def commands() -> list[list[str]]:
    """Words after ``exec vfejax`` in all manifests, shell variables as the first pod has them."""
    found = []
    for path in sorted(DEPLOY.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            template = document["spec"].get("template", {"spec": {"containers": []}})
            for container in template["spec"]["containers"]:
                script = container["args"][0].split("exec vfejax ")[1]
                script = script.replace("${resume-}", "").replace("$JOB_COMPLETION_INDEX", "0")
                found.append(shlex.split(script))
    return found


@pytest.mark.parametrize("words", commands(), ids=lambda words: words[0])
def test_the_command_of_a_manifest_is_one_of_this_version(words):
    command = import_module(f"vfejax.cli.{words[0]}.command")
    command.check_values(command.parse(words[1:]))


def test_the_probe_knows_a_dead_loop(tmp_path):
    why_dead = runpy.run_path(str(DEPLOY / "alive.py"))["why_dead"]
    path, now = tmp_path / "status.json", time.time()
    assert "cannot be read" in why_dead(path, 10)
    for told, reason in (
        ({"state": "running", "written": now}, ""),
        ({"state": "running", "written": now - 60}, "more than 10 s"),
        ({"state": "failed", "written": now}, "the loop has failed"),
        ([], "cannot be read"),
    ):
        path.write_text(json.dumps(told))
        why = why_dead(path, 10)
        assert (why == "") if reason == "" else reason in why
