"""`.ci/run`: it calls the README's test command, and installs a browser first where there is none."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "run"
USED = ("bash", "dirname", "timeout", "env", "cat", "chmod")
"""What the script and its stand-ins call that is no stand-in itself."""


def stand_in(path: Path, does: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{does}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("browser", "user", "apt", "expected"),
    [
        (True, 0, True, []),
        (False, 0, True, ["apt-get -q update", "install --no-install-recommends chromium"]),
        (False, 0, False, ["-q update", "chromium", "make .venv/.installed", "python -m playwright install chromium"]),
        (False, 1000, True, ["make .venv/.installed", "python -m playwright install chromium"]),
    ],
    ids=["browser is here", "apt-get installs it", "apt-get cannot", "not root"],
)
def test_a_browser_is_installed_where_it_is_missing(tmp_path, browser, user, apt, expected):
    programs, log = tmp_path / "bin", tmp_path / "log"
    programs.mkdir()
    for name in USED:
        (programs / name).symlink_to(shutil.which(name))
    shutil.copytree(SCRIPT.parent, tmp_path / "repository" / ".ci")
    says = f'echo "$(basename $0) $*" >> {log}'.replace("$(basename $0)", "${0##*/}")
    chromium = f"printf '' > {programs}/chromium; chmod +x {programs}/chromium"
    stand_in(programs / "id", f"echo {user}")
    stand_in(programs / "make", f'{says}; [ "$1" = test ] && echo "required $MTL_RE_REQUIRE_BROWSER" >> {log}; true')
    stand_in(programs / "apt-get", f"{says}; {chromium if apt else 'exit 100'}")
    stand_in(tmp_path / "repository" / ".venv" / "bin" / "python", says)
    if browser:
        stand_in(programs / "chromium", "")
    done = subprocess.run(
        [tmp_path / "repository" / ".ci" / "run"],
        env={"PATH": str(programs)},
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    calls = log.read_text(encoding="utf-8").splitlines()
    assert calls[-2:] == ["make test", "required 1"]
    assert len(calls) == len(expected) + 2
    assert all(part in call for part, call in zip(expected, calls, strict=False)), calls


def test_the_script_may_be_run():
    assert os.access(SCRIPT, os.X_OK)
