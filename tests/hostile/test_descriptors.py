"""Standard descriptors that are closed or odd: a clear end each time, never an abort, and nothing paid unseen."""

import json
import os
import subprocess
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest

from support.command import HIVEMINT, environment, network_out_of_reach, run

CLOSED = [numbers for count in (1, 2, 3) for numbers in combinations((0, 1, 2), count)]


def closing(*numbers: int) -> Callable[[], None]:
    """To be run in the child, before the command."""

    def close() -> None:
        for number in numbers:
            os.close(number)

    return close


@pytest.mark.parametrize("numbers", CLOSED, ids=lambda numbers: "".join(map(str, numbers)))
def test_closed_descriptors(numbers: tuple[int, ...], tmp_path: Path) -> None:
    """`contracts params` opens an event loop, whose library aborts where it closes one of the three."""
    words = ("contracts", "params", "--network", network_out_of_reach(tmp_path))
    done = run(tmp_path / "home", *words, preexec_fn=closing(*numbers))
    assert done.returncode == (10 if 1 in numbers else 5)
    if 2 not in numbers:
        assert ("Standard output is closed" if 1 in numbers else "127.0.0.1:9") in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("numbers", [(2,), (0, 2)])
def test_a_file_never_takes_the_place_of_a_closed_one(numbers: tuple[int, ...], tmp_path: Path) -> None:
    done = run(tmp_path, "wallet", "create", "bob", "--weak", "--json", preexec_fn=closing(*numbers))
    assert done.returncode == 0
    made = json.loads(done.stdout)
    assert json.loads(Path(made["file"]).read_text())["version"] == 3


def test_a_prompt_from_a_closed_input(tmp_path: Path) -> None:
    done = run(tmp_path, "generate", "-", preexec_fn=closing(0))
    assert (done.returncode, "The prompt is empty" in done.stderr) == (2, True)


def test_a_directory_as_input(tmp_path: Path) -> None:
    """Python itself refuses it, before any code of ours: in one line, with an exit status and no signal."""
    handle = os.open(tmp_path, os.O_RDONLY)
    done = run(tmp_path, "generate", "-", stdin=handle)
    os.close(handle)
    assert done.returncode == 1
    assert "is a directory" in done.stderr


@pytest.mark.parametrize("words", [("generate", "hi"), ("account", "fund", "1", "--json")])
def test_output_that_takes_nothing_is_found_before_anything_is_done(words: tuple[str, ...], tmp_path: Path) -> None:
    """A verb without a network file would fail for that: it does not come so far."""
    with Path("/dev/full").open("w") as full:
        done = run(tmp_path / "home", *words, stdout=full)
    assert done.returncode == 10
    assert "Standard output cannot be written" in done.stderr
    assert "No space left" in done.stderr
    assert not (tmp_path / "home").exists()
    handle = os.open("/dev/null", os.O_RDONLY)
    done = run(tmp_path / "home", *words, stdout=handle)
    os.close(handle)
    assert done.returncode == 10
    assert not (tmp_path / "home").exists()


def test_nothing_is_paid_for_a_reader_that_has_gone(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run(tmp_path / "home", "generate", "hi", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
    assert not (tmp_path / "home").exists()


def test_a_full_device_as_standard_error_is_no_reason_to_fail(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = run(tmp_path, "wallet", "create", "bob", "--weak", stderr=full)
        assert done.returncode == 0
        assert "bob" in done.stdout
        assert run(tmp_path, "wallet", "show", "eve", stderr=full).returncode == 3


def test_a_disk_that_fills_while_we_write(tmp_path: Path) -> None:
    """The file takes nothing at all: told, with the code of the system, and without Python's own words."""

    def small() -> None:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))

    with (tmp_path / "output").open("w") as file:
        done = subprocess.run(
            [HIVEMINT, "config", "show"],
            env=environment(tmp_path) | {"PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=small,
            timeout=120,
            check=False,
        )
    assert done.returncode == 10, done
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.stderr.startswith("error ")
