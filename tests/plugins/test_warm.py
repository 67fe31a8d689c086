"""Programs in a warm Python behave as in a new one."""

import os
import signal
import subprocess
import sys
import time

import pytest

from .warm import Warm, kill

LOADED = "colorsys"  # nothing else here imports it: only a warm Python has it from the start
ASKED = f"import sys; print({LOADED!r} in sys.modules)"


@pytest.fixture(scope="module")
def small():
    """A warm Python that has imported next to nothing."""
    warm = Warm(modules=("json.*", LOADED))
    yield warm
    warm.close()


@pytest.fixture
def run(small):
    def run(*arguments, **options):
        options = {"capture_output": True, "text": True, "timeout": 60, **options}
        return subprocess.run([small.python, *arguments], **options)

    return run


def both(run, *arguments, **options):
    """What a program gives in a warm Python, which has to be what it gives in a new one."""
    warm = run(*arguments, **options)
    new = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)
    assert (warm.returncode, warm.stdout) == (new.returncode, new.stdout)
    assert warm.stderr == new.stderr
    return new


@pytest.mark.parametrize("how", ["code", "module", "file"])
def test_a_program_finds_what_it_expects(run, tmp_path, how):
    code = "import os, sys; print(__name__, sys.argv, os.getcwd(), os.environ['A'], input())"
    (tmp_path / "program.py").write_text(f"{code}\nimport other\nprint(__file__)\n")
    (tmp_path / "other.py").write_text("print('found')\n")
    start = {
        "code": ["-c", f"{code}; import other"],
        "module": ["-m", "program"],
        "file": [str(tmp_path / "program.py")],
    }
    options = {"cwd": tmp_path, "env": {**os.environ, "A": "ü\n"}, "input": "typed\n"}
    done = both(run, *start[how], "one", "", "two words", **options)
    assert done.stdout.startswith("__main__ [")
    assert "typed\nfound\n" in done.stdout


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", 0),
        ("raise SystemExit", 0),
        ("raise SystemExit(7)", 7),
        ("raise SystemExit(-1)", 255),
        ("raise SystemExit('a reason')", 1),
        ("def f(): return 1 / 0\nf()", 1),
        ("1 +", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import atexit; atexit.register(print, 'end'); print('begin')", 0),
        ("import threading, time; threading.Timer(0.1, print, 'x').start()", 0),
        ("import os; print('lost'); os._exit(3)", 3),
        ("import sys; print(sys.stdout.isatty(), sys.stdin.read())", 0),
        ("import sys; print('all'); sys.stdout.close()", 0),
    ],
)
def test_it_ends_in_the_same_way(run, code, status):
    options = {"stdin": subprocess.DEVNULL}
    if code == "1 +":  # whose traceback differs between releases of Python
        assert run("-c", code, **options).returncode == status
        return
    assert both(run, "-c", code, **options).returncode == status


@pytest.mark.parametrize("encoding", ["ascii", "iso8859-1", "utf-8:replace"])
def test_streams_are_encoded_as_they_should_be(run, encoding):
    code = "import sys; print(ascii('ü'), sys.stdout.encoding, sys.stdout.errors)"
    both(run, "-c", code, env={**os.environ, "PYTHONIOENCODING": encoding})


def test_output_comes_at_once_where_python_is_told_so(small):
    code = "import time; print('now'); time.sleep(60)"
    command = [small.python, "-u", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "now\n"
        kill(process)


def test_nothing_is_imported_again(run):
    assert run("-c", ASKED).stdout == "True\n"
    assert run("-c", "import random; print(random.random())").stdout != (
        run("-c", "import random; print(random.random())").stdout
    )


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["-W", "ignore", "-c", ASKED], {}),
        (["-"], {"input": ASKED}),
        (["-c", ASKED], {"env": {**os.environ, "HF_HOME": "/elsewhere"}}),
        (["-c", ASKED], {"env": {**os.environ, "PYTHONPATH": "/elsewhere"}}),
    ],
    ids=["options", "stdin", "variables of packages", "variables of Python"],
)
def test_a_new_python_runs_what_a_warm_one_cannot(run, arguments, options):
    assert both(run, *arguments, **options).stdout == "False\n"


WAITING = """
import os, time
try:  # from before the line that tells others to send signals
    print(os.getpid(), flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
    raise SystemExit(130)
"""


@pytest.fixture
def waiting(small):
    """A program that sleeps, and its process id."""
    process = subprocess.Popen([small.python, "-c", WAITING], stdout=subprocess.PIPE, text=True)
    with process:
        yield process, int(process.stdout.readline())
        if process.poll() is None:
            kill(process)


def is_alive(child):
    try:
        os.kill(child, 0)
    except ProcessLookupError:
        return False
    return True


def test_signals_are_passed_on(waiting):
    process, child = waiting
    assert child != process.pid
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("interrupted\n", None)
    assert process.returncode == 130


def test_a_killed_program_is_dead_when_that_is_said(waiting):
    process, child = waiting
    kill(process)
    assert not is_alive(child)
    assert process.returncode == -signal.SIGKILL


def test_a_program_ends_with_its_command(waiting):
    process, child = waiting
    process.kill()
    process.wait()
    end = time.monotonic() + 60
    while is_alive(child):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_several_run_at_once(run, waiting):
    assert run("-c", "print(1)").stdout == "1\n"
    assert is_alive(waiting[1])


def test_the_end_of_the_server_ends_its_programs():
    warm = Warm(modules=())
    with subprocess.Popen([warm.python, "-c", WAITING], stdout=subprocess.PIPE) as process:
        child = int(process.stdout.readline())
        warm.close()
        assert process.wait(60) != 0
    assert not is_alive(child)
    assert not warm.bin.exists()


def test_clara_is_a_command(small):
    done = subprocess.run([small.clara, "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("clara ")


@pytest.mark.parametrize(
    ("modules", "reason"),
    [(("no_such_module",), "No module named 'no_such_module'"), (("threads",), "started threads")],
)
def test_a_server_that_cannot_start_says_why(modules, reason, tmp_path, monkeypatch, capfd):
    code = "import threading, time\nthreading.Thread(target=time.sleep, args=[60], daemon=True)"
    (tmp_path / "threads.py").write_text(f"{code}.start()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="did not start"):
        Warm(modules=modules)
    assert reason in capfd.readouterr().err
