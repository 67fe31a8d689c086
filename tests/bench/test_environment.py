"""Which code results are of."""

import subprocess

from bench import environment


def git(folder, *arguments):
    named = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    done = subprocess.run(
        ["git", *named, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_results_that_a_run_adds_do_not_make_its_code_another(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    assert environment._commit() is None
    results = tmp_path / "bench" / "results" / "some-cpu" / "learning.jsonl"
    code = tmp_path / "clara.py"
    results.parent.mkdir(parents=True)
    for file in (results, code):
        file.write_text("1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "first")
    commit = git(tmp_path, "rev-parse", "--short=12", "HEAD")
    assert environment._commit() == commit
    results.write_text("1\n2\n")
    (tmp_path / "notes").write_text("mine\n")
    assert environment._commit() == commit
    code.write_text("2\n")
    assert environment._commit() == f"{commit}-dirty"


def test_commands_name_no_folder_of_one_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        "python",
        "-m",
        "bench.storage",
        "--model",
        str(tmp_path / "runs" / "m"),
        "--rates",
        "4",
    ]
    words += ["--folder", "/mnt/disk7/x", f"--results={tmp_path}/build/a.json", "--name", "a b"]
    assert environment.shown_command(words) == (
        "python -m bench.storage --model runs/m --rates 4 --folder x --results=build/a.json "
        "--name 'a b'"
    )
