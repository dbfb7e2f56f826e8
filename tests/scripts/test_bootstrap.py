"""The set-up scripts, run in a copy of the root with a fake Python: no network, no real install."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TOOLS = ["bash", "cat", "cksum", "cp", "dirname", "flock", "grep", "ls", "mkdir", "mv", "rm", "sha256sum"]
TOOLS += ["shasum", "sleep", "tail", "tee", "tr"]

# Answers like python, python -m venv, python -m pip; notes in calls.log what it was asked to do.
FAKE_PYTHON = r"""#!/usr/bin/env bash
case "$*" in
    *"import ensurepip"*) echo "${FAKE_VERSION:-3.11.7}"; exit "${FAKE_PROBE_STATUS:-0}" ;;
    *"print(sys.version)"*) echo "${FAKE_VERSION:-3.11.7}" ;;
    *"import sys, pip"*) exit "${FAKE_VENV_STATUS:-0}" ;;
    "-m venv --clear "*)
        echo "venv" >>"$CALLS"
        rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; : >"$4/pyvenv.cfg" ;;
    "-m pip install "*)
        echo "pip ${*: -1} in $PWD" >>"$CALLS"
        echo "  Downloading torch.whl (190.0 MB)"
        echo "Installing collected packages: torch"
        sleep "${FAKE_PIP_SECONDS:-0}"
        if [ -n "${FAKE_PIP_STATUS:-}" ]; then echo "ERROR: the network is down"; exit "$FAKE_PIP_STATUS"; fi
        echo "Successfully installed torch" ;;
    *)
        echo "run ${*#"$ROOT_OF_COPY"/}" >>"$CALLS"
        case "$*" in *"${FAKE_FAILING:-@none@}"*) exit 1 ;; esac ;;
esac
"""
INSTALL = ["pip setuptools in .", "pip . in ."]
INSTALL_ALL = ["pip setuptools in .", "pip .[dev,bench] in ."]
QUICKSTART = "run scripts/quickstart.py"
CHECKS = ["run -m ruff check .", "run -m ruff format --check .", "run -m mypy"]


@dataclass(frozen=True)
class Copy:
    """A copy of the set-up scripts, with a PATH of its own."""

    root: Path
    path: Path

    def start(self, script: str, *arguments: str, **fake: str) -> subprocess.Popen[str]:
        environment = {
            "PATH": str(self.path),
            "CALLS": str(self.root / "calls.log"),
            "ROOT_OF_COPY": str(self.root),
            **{name if name == "PYTHON" else f"FAKE_{name}": value for name, value in fake.items()},
        }
        command = [str(self.path / "bash"), str(self.root / "scripts" / script), *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=environment, text=True, cwd="/"
        )

    def run(self, script: str, *arguments: str, **fake: str) -> tuple[int, str]:
        process = self.start(script, *arguments, **fake)
        output, errors = process.communicate()
        return process.returncode, output + errors

    def calls(self) -> list[str]:
        """What the fake Python was asked since the last time, with the root shown as a dot."""
        log = self.root / "calls.log"
        lines = log.read_text().replace(str(self.root), ".").splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    @property
    def venv(self) -> Path:
        return self.root / ".venv"


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    tmp_path = tmp_path.resolve()
    root, path = tmp_path / "a project [1]", tmp_path / "bin"
    (root / "scripts").mkdir(parents=True)
    path.mkdir()
    for name in ("_bootstrap.sh", "quickstart", "test"):
        shutil.copy(REPOSITORY / "scripts" / name, root / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, root)
    for tool in TOOLS:
        if found := shutil.which(tool):
            (path / tool).symlink_to(found)
    add_program(path / "python3", FAKE_PYTHON)
    return Copy(root, path)


def add_program(path: Path, text: str) -> None:
    path.write_text(text.replace("#!/usr/bin/env bash", f"#!{shutil.which('bash')}"))
    path.chmod(0o755)


def test_first_run_installs_and_second_run_leaves_pip_alone(copy: Copy) -> None:
    status, output = copy.run("quickstart", "--out", "x y")
    assert status == 0
    assert copy.calls() == ["venv", *INSTALL, f"{QUICKSTART} --out x y"]
    assert "Downloading torch.whl (190.0 MB)" in output
    assert copy.run("quickstart") == (0, "")
    assert copy.calls() == [QUICKSTART]


def test_quickstart_is_content_with_the_environment_of_test(copy: Copy) -> None:
    assert copy.run("test", "-x")[0] == 0
    assert copy.calls() == ["venv", *INSTALL_ALL, "run -m pytest -q -n 2 -x"]
    assert copy.run("quickstart")[0] == 0
    assert copy.calls() == [QUICKSTART]


def test_test_adds_what_quickstart_did_not_install(copy: Copy) -> None:
    copy.run("quickstart")
    copy.calls()
    assert copy.run("test")[0] == 0
    assert copy.calls() == [*INSTALL_ALL, *CHECKS, "run -m pytest -q -n 2"]


def edit_constraints(copy: Copy) -> None:
    with (copy.root / "constraints.txt").open("a") as file:
        file.write("torch==0\n")


def edit_project(copy: Copy) -> None:
    with (copy.root / "pyproject.toml").open("a") as file:
        file.write("# another line\n")


def cut_stamp(copy: Copy) -> None:
    (copy.venv / ".nfn-opt-installed").write_text("")


@pytest.mark.parametrize("change", [edit_constraints, edit_project, cut_stamp])
def test_a_change_installs_again_in_the_same_environment(copy: Copy, change: Callable[[Copy], None]) -> None:
    copy.run("quickstart")
    copy.calls()
    change(copy)
    assert copy.run("quickstart")[0] == 0
    assert copy.calls() == [*INSTALL, QUICKSTART]


def test_another_python_installs_again(copy: Copy) -> None:
    copy.run("quickstart")
    copy.calls()
    assert copy.run("quickstart", VERSION="3.12.1")[0] == 0
    assert copy.calls() == [*INSTALL, QUICKSTART]


def test_a_failed_install_counts_as_nothing_and_is_made_anew(copy: Copy) -> None:
    status, output = copy.run("quickstart", PIP_STATUS="1")
    assert status == 1
    assert "ERROR: the network is down" in output
    assert "pip could not install the packages" in output
    assert copy.calls() == ["venv", "pip setuptools in ."]
    assert copy.run("quickstart")[0] == 0
    assert copy.calls() == ["venv", *INSTALL, QUICKSTART], "half an unpacking must not be built upon"


def test_a_failed_upgrade_does_not_leave_the_old_stamp(copy: Copy) -> None:
    copy.run("quickstart")
    edit_constraints(copy)
    assert copy.run("quickstart", PIP_STATUS="1")[0] == 1
    assert not (copy.venv / ".nfn-opt-installed").exists()


def remove_python(copy: Copy) -> None:
    (copy.venv / "bin" / "python").unlink()


def leave_empty(copy: Copy) -> None:
    shutil.rmtree(copy.venv)
    copy.venv.mkdir()


def break_python(copy: Copy) -> None:
    add_program(copy.venv / "bin" / "python", "#!/usr/bin/env bash\nexit 127\n")


@pytest.mark.parametrize("damage", [remove_python, leave_empty, break_python])
def test_a_broken_environment_is_made_anew(copy: Copy, damage: Callable[[Copy], None]) -> None:
    copy.run("quickstart")
    copy.calls()
    damage(copy)
    status, output = copy.run("quickstart")
    assert (status, copy.calls()) == (0, ["venv", *INSTALL, QUICKSTART])
    assert "making it anew" in output


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_something_else_named_venv_is_not_removed(copy: Copy, kind: str) -> None:
    precious = copy.venv if kind == "file" else copy.venv / "notes.txt"
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("keep me")
    status, output = copy.run("quickstart")
    assert status == 1
    assert "is in the way" in output
    assert precious.read_text() == "keep me"
    assert copy.calls() == []


@pytest.mark.parametrize(
    ("fake", "reason"),
    [
        ({"PROBE_STATUS": "3", "VERSION": "3.9.2"}, "python3: Python 3.9.2 is too old"),
        (
            {"PROBE_STATUS": "4"},
            "python3: Python 3.11.7 has no venv module (on Debian and Ubuntu: apt install",
        ),
        ({"PROBE_STATUS": "127"}, "python3: does not run"),
        ({"PYTHON": "/nowhere/python3"}, "/nowhere/python3: not found"),
    ],
)
def test_without_a_usable_python_it_says_what_it_tried(copy: Copy, fake: dict[str, str], reason: str) -> None:
    status, output = copy.run("quickstart", **fake)
    assert status == 1
    assert "Python 3.10 or newer is needed" in output
    assert reason in output
    assert copy.calls() == []
    assert not copy.venv.exists()


def test_a_shim_with_nothing_behind_it_is_passed_over(copy: Copy) -> None:
    (copy.path / "python3").rename(copy.path / "python3.12")
    add_program(copy.path / "python3", "#!/usr/bin/env bash\nexit 127\n")
    assert copy.run("quickstart")[0] == 0
    assert copy.calls() == ["venv", *INSTALL, QUICKSTART]


def test_an_environment_that_does_not_come_to_life_is_an_error(copy: Copy) -> None:
    status, output = copy.run("quickstart", VENV_STATUS="1")
    assert status == 1
    assert "could not make the environment" in output
    assert copy.calls() == ["venv"]


@pytest.mark.parametrize("failing", ["ruff check", "ruff format", "mypy"])
def test_all_checks_run_and_a_failed_one_stops_before_the_tests(copy: Copy, failing: str) -> None:
    status, output = copy.run("test", FAILING=failing)
    assert status == 1
    assert copy.calls() == ["venv", *INSTALL_ALL, *CHECKS]
    assert output.endswith(f"so the tests were not started: {failing.split()[0]}\n")


def test_the_status_of_the_tests_is_the_status_of_the_script(copy: Copy) -> None:
    assert copy.run("test", FAILING="pytest")[0] == 1


def test_help_installs_nothing(copy: Copy) -> None:
    status, output = copy.run("test", "--help")
    assert status == 0
    assert "Usage: scripts/test" in output
    assert copy.calls() == []


@pytest.mark.parametrize("script", [".ci/run", "scripts/quickstart", "scripts/test"])
def test_scripts_can_be_executed(script: str) -> None:
    assert os.access(REPOSITORY / script, os.X_OK)


if shutil.which("flock"):  # without it the scripts do not keep two runs apart

    def test_two_runs_at_once_install_once(copy: Copy) -> None:
        runs = [copy.start("quickstart", PIP_SECONDS="0.3") for _ in range(2)]
        outputs = [run.communicate() for run in runs]
        assert [run.returncode for run in runs] == [0, 0], outputs
        assert sorted(copy.calls()) == sorted(["venv", *INSTALL, QUICKSTART, QUICKSTART])
