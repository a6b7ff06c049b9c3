"""The command line is reached as a module, too."""

import subprocess
import sys

import tunesmith


def test_python_m_tunesmith_is_the_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "tunesmith", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"tunesmith {tunesmith.__version__}\n", "")


def test_the_module_names_the_command_in_its_help() -> None:
    done = subprocess.run([sys.executable, "-m", "tunesmith", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Usage: tunesmith " in done.stdout
