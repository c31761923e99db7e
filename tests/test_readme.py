"""The README's example runs as printed, and what it names exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_example_runs_as_printed(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    energy = float(re.match(r"free energy (\S+) nats", printed).group(1))
    assert energy > 0


def test_every_path_in_the_readme_exists():
    for path in re.findall(r"`((?:examples|notebooks|benchmarks|tests|docs)/[\w./]+)`", README):
        assert (ROOT / path).exists(), path
