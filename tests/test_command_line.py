"""The command line as a person meets it: each command in a process of its own."""

import importlib
import json
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from judged_runs import build, plain

from gavel.cli import COMMANDS, root
from gavel.command import command, emit, exit_codes, key_values, text_values
from gavel.records import Completion
from gavel.rundir import RunDir, read_records

GAVEL = str(Path(sys.executable).with_name("gavel"))
FAKE = ["--engine", "fake", "--model", "fake"]
FAKE_JUDGE = ["--engine", "fake", "--judge", "fake"]
HEAVY = ("torch", "transformers", "vllm", "datasets", "trl", "pyarrow", "wandb", "numpy")
TO = [*FAKE, "--prompts", "p", "--out", "o"]
NAMES = [[name] for name in COMMANDS] + [["train", "dpo"], []]


def gavel(*args: object, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([GAVEL, *map(str, args)], capture_output=True, text=True, cwd=cwd, timeout=60)


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """Commands that run in this process leave its signals as they were."""
    kept = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, kept)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Question {i}?"}) + "\n" for i in range(5)))
    return path


# --help


@pytest.mark.parametrize("name", NAMES, ids=" ".join)
def test_help_is_quick(name: list[str]) -> None:
    """In processor time: how long a process waits for a core says nothing about it."""
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = gavel(*name, "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("Usage: gavel")
        assert not done.stderr
        if seconds < 0.3:
            return
    pytest.fail(f"--help took {seconds:.2f} s")


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from gavel.cli import COMMANDS, main\n"
        "for name in [*([name] for name in COMMANDS), ['train', 'dpo'], []]:\n"
        "    sys.argv = ['gavel', *name, '--help']\n"
        "    main()\n"
        "print('LOADED', *sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.count("Usage: ") == len(NAMES)
    loaded = {module.split(".")[0] for module in done.stdout.rpartition("LOADED")[2].split()}
    assert {"click", "judge", "train", "demo"} <= loaded
    assert not loaded & set(HEAVY)


def test_every_command_has_a_help_line_and_options_that_are_read() -> None:
    listed = gavel("--help").stdout
    for name, (place, line) in COMMANDS.items():
        assert line in listed
        module, attribute = place.split(":")
        assert isinstance(getattr(importlib.import_module(module), attribute), click.Command), name


# exit codes


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["generat"], "Did you mean 'generate'?"),
        (["nonsense"], "No such command"),
        (["generate"], "Missing option '--model'"),
        (["generate", "--nope"], "No such option"),
        (["generate", *TO, "-n", "0"], "not in the range"),
        (["generate", *TO, "-n", "x"], "not a valid integer"),
        (["generate", *FAKE, "--prompts", "missing.jsonl", "--out", "o"], "missing.jsonl"),
        (["generate", *TO, "--engine", "gpt"], "unknown engine 'gpt'"),
        (["generate", *TO, "--engine-arg", "x"], "--engine-arg: 'x' is not KEY"),
        (["generate", *TO, "--max-bad-rows", "-1"], "--max-bad-rows"),
        (["generate", *TO, "--config", "none.toml"], "none.toml: cannot be read"),
        (["judge", "nowhere", *FAKE_JUDGE], "no such run directory or file"),
        (["judge", ".", "--out", "run"], "--judge: a judge is needed"),
        (["pairs", "nowhere"], "nowhere"),
        (["train"], "Usage:"),
        (["train", "dpo", "--model", "m"], "Missing option"),
        ([], "Usage:"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_mistake_is_exit_2(
    args: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped, exit_codes():
        root.main(args, prog_name="gavel", standalone_mode=False)
    assert stopped.value.code == 2
    told = capsys.readouterr()
    assert message in told.err
    assert not told.out


@pytest.mark.parametrize("args", [["nonsense"], ["generate", "--model", "m"], ["judge", "x", "--judge", "m"]])
def test_a_mistake_is_no_traceback(args: list[str], tmp_path: Path) -> None:
    done = gavel(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert "rror: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_a_place_that_cannot_be_written(prompts: Path) -> None:
    done = gavel("generate", *FAKE, "--prompts", prompts, "--out", "/proc/run")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


def test_a_second_process_is_told_who_holds_the_run(prompts: Path, tmp_path: Path) -> None:
    with RunDir.open(tmp_path / "run"):
        done = gavel("generate", *FAKE, "--prompts", prompts, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "in use by process" in done.stderr


# interruption


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_interrupted_and_run_again(stop: signal.Signals, tmp_path: Path) -> None:
    prompts, run = tmp_path / "in.jsonl", RunDir(tmp_path / "run")
    count, n = 200, 8
    prompts.write_text(
        "".join(json.dumps({"prompt": f"Question {i}? " + "x" * 1000}) + "\n" for i in range(count))
    )
    args = ["generate", *FAKE, "--prompts", prompts, "--out", run.path, "-n", n, "--json"]
    process = subprocess.Popen(
        [GAVEL, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    while not run.completions_path.exists() or run.completions_path.stat().st_size < 2000:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(stop)
    out, err = process.communicate(timeout=5)
    assert process.returncode == 130, err
    assert out == ""
    assert "what was recorded is kept" in err
    assert "Traceback" not in err
    kept = list(read_records(run.completions_path, Completion))
    assert 0 < len(kept) < count * n
    assert run.stage("generate") == {}

    done = gavel(*args)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["reused"], summary["sampled"]) == (len(kept), count * n - len(kept))
    found = list(read_records(run.completions_path, Completion))
    assert found[: len(kept)] == kept
    assert len({c.id for c in found}) == len(found) == count * n
    assert set(Counter(c.prompt_id for c in found).values()) == {n}


# output


@pytest.mark.slow
def test_main_path_from_a_folder_with_modules_of_these_names(prompts: Path, tmp_path: Path) -> None:
    """And --json prints one object and nothing else, whatever there is to complain about."""
    here = tmp_path / "here"
    here.mkdir()
    for name in ("train", "judge", "generate", "prompts", "demo", "rounds", "gavel", "click", "json"):
        (here / f"{name}.py").write_text("raise SystemExit('wrong module')\n")
    (here / "prompts").mkdir()
    outputs = [{"prompt": f"q{i}", "completion": f"answer {i}"} for i in range(3)]
    (here / "outputs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in outputs))
    with prompts.open("a") as file:
        file.write('{"prompt": ""}\nnot json\n{"prompt": "Question 1?"}\n')
    told = ""
    for args in (
        ["generate", *FAKE, "--prompts", prompts, "--out", "run", "-n", 3, "--max-bad-rows", 5],
        ["judge", "run", *FAKE_JUDGE],
        ["pairs", "run", "--to", "pairs.jsonl"],
        ["score", "outputs.jsonl", *FAKE_JUDGE, "--out", "scores.jsonl"],
    ):
        done = gavel(*args, "--json", cwd=here)
        assert done.returncode == 0, (args, done.stderr)
        assert done.stdout.count("\n") == 1
        assert isinstance(json.loads(done.stdout, parse_constant=pytest.fail), dict)
        told += done.stderr
    assert "wrong module" not in told
    assert all(part in told for part in (f"{prompts}:6", f"{prompts}:7", "repeats 1 prompt;"))
    assert len((here / "pairs.jsonl").read_text().splitlines()) > 0
    assert len((here / "scores.jsonl").read_text().splitlines()) == 3
    for command_ in (["train", "dpo", "--help"], ["demo", "--help"]):
        assert gavel(*command_, cwd=here).returncode == 0


def test_numbers_that_json_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": (float("-inf"), "我")}}, as_json=True)
    assert capsys.readouterr().out == '{"a": null, "b": [1.5, null], "c": {"d": [null, "我"]}}\n'


def test_a_table_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    bins = [{"n": 1, "accuracy": 0.5}, {"n": 2, "accuracy": 1.0}]
    emit({"pairs_kept": 12345, "x": 0.123456, "ok": True, "none": None, "l": [], "held_out": {"bins": bins}},
         as_json=False, title="done")  # fmt: skip
    out = capsys.readouterr().out.splitlines()
    assert out == ["done", "  pairs kept  12,345", "  x           0.1235", "  ok          yes",
                   "  none        -", "  l           -", "  held out    bins 2 rows (--json)"]  # fmt: skip


def test_a_closed_pipe(prompts: Path, tmp_path: Path) -> None:
    line = f"{GAVEL} generate --engine fake --model fake --prompts {prompts} --out {tmp_path}/run | true"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    assert RunDir(tmp_path / "run").stage("generate")["completions"] == 40


# --config


@command("A command with an option of every kind.")
@click.argument("place")
@click.option("--model", "named", required=True)
@click.option("-n", "--n", "n", type=click.IntRange(min=1), default=3)
@click.option("--max-tokens", type=int, default=512)
@click.option("--beta", type=float, default=0.1)
@click.option("--mode", type=click.Choice(["raw", "processed"]), default="raw")
@click.option("--stop", multiple=True)
@click.option("--engine-arg", multiple=True, callback=key_values)
@click.option("--map", "mapping", multiple=True, callback=text_values)
@click.option("--overwrite", is_flag=True)
@click.option("--plain/--chat", "bare", default=None)
def sample(**options: Any) -> None:
    click.echo(json.dumps(options))


def run_sample(tmp_path: Path, toml: str | bytes, *args: str) -> dict[str, Any]:
    """What the command gets from a TOML file and flags."""
    path = tmp_path / "c.toml"
    path.write_bytes(toml if isinstance(toml, bytes) else toml.encode())
    got: dict[str, Any] = {}
    sample.callback, kept = got.update, sample.callback
    try:
        sample.main(["here", "--config", str(path), *args], standalone_mode=False)
    finally:
        sample.callback = kept
    return got


def failure(capsys: pytest.CaptureFixture[str], tmp_path: Path, toml: str | bytes, *args: str) -> str:
    with pytest.raises(SystemExit) as stopped, exit_codes():
        run_sample(tmp_path, toml, *args)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_every_kind_of_option_from_toml(tmp_path: Path) -> None:
    toml = """
    model = "m"        # required, renamed
    n = 7
    max-tokens = 9
    beta = 1
    mode = "processed"
    stop = ["a", "\\n", "b=c"]
    map = { prompt = "source", answer = "1e5", id = 7 }
    overwrite = true
    plain = false
    [engine_arg]
    tensor_parallel_size = 4
    text = "4"
    flag = true
    list = [1, "a"]
    """
    assert run_sample(tmp_path, toml) == {
        "place": "here", "named": "m", "n": 7, "max_tokens": 9, "beta": 1.0, "mode": "processed",
        "stop": ("a", "\n", "b=c"), "mapping": {"prompt": "source", "answer": "1e5", "id": "7"},
        "overwrite": True, "bare": False, "as_json": False,
        "engine_arg": {"tensor_parallel_size": 4, "text": "4", "flag": True, "list": [1, "a"]},
    }  # fmt: skip
    assert run_sample(tmp_path, 'model = "m"\nmax_tokens = 9\njson = true')["max_tokens"] == 9
    assert run_sample(tmp_path, 'model = "m"\nchat = true')["bare"] is False
    assert run_sample(tmp_path, 'model = "m"\nstop = "one"')["stop"] == ("one",)
    listed = run_sample(tmp_path, 'model = "m"\nmap = ["a=b"]\nengine-arg = ["x=1", "y=z"]')
    assert (listed["mapping"], listed["engine_arg"]) == ({"a": "b"}, {"x": 1, "y": "z"})


def test_the_flag_wins(tmp_path: Path) -> None:
    toml = 'model = "m"\nn = 7\nstop = ["a"]\nplain = true\n[engine-arg]\na = 1'
    args = ["--model", "flag", "-n", "2", "--stop", "x", "--stop", "y", "--chat", "--engine-arg", "b=2"]
    got = run_sample(tmp_path, toml, *args)
    assert (got["named"], got["n"], got["stop"], got["bare"]) == ("flag", 2, ("x", "y"), False)
    assert got["engine_arg"] == {"b": 2}
    assert run_sample(tmp_path, 'model = "m"')["n"] == 3
    assert run_sample(tmp_path, "n = 7", "--model", "m")["max_tokens"] == 512


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("max-token = 1", 'unknown key "max-token"\n  Did you mean "max-tokens"?'),
        ("mapping = []", 'unknown key "mapping"\n  Did you mean "map"?'),
        ("named = 1", 'unknown key "named"'),
        ("place = 'x'", 'unknown key "place"'),
        ("config = 'x'", 'unknown key "config"'),
        ("zzz = 1", "Known: beta, chat, engine-arg, "),
        ("max-tokens = 1\nmax_tokens = 2", '"max_tokens" is set a second time'),
        ("plain = true\nchat = true", '"chat" is set a second time'),
        ("n = '7'", "n: '7' is not a whole number"),
        ("n = 1.5", "n: 1.5 is not a whole number"),
        ("n = true", "n: True is not a whole number"),
        ("n = 0", "n: 0 is not in the range"),
        ("n = [1]", "n: [1] is not a whole number"),
        ("beta = 'x'", "beta: 'x' is not a number"),
        ("mode = 'rw'", "mode: 'rw' is not one of"),
        ("mode = true", "mode: True is not a string"),
        ("overwrite = 'yes'", "overwrite: 'yes' is neither true nor false"),
        ("overwrite = 1", "overwrite: 1 is neither true nor false"),
        ("stop = [['a']]", "stop: ['a'] is not a string"),
        ("stop = {a = 1}", "stop: {'a': 1} is not a string"),
        ("map = ['x']", "map: 'x' is not KEY=VALUE"),
        ("engine-arg = 'x'", "engine-arg: 'x' is not KEY=VALUE"),
        ("model = 2020-01-01", "is not a string"),
        ("n = ", "is not TOML"),
        (b"model = '\xff'", "is not UTF-8"),
    ],
)
def test_a_mistake_in_toml_names_file_and_key(
    toml: str | bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = failure(capsys, tmp_path, toml, "--model", "m")
    assert f"{tmp_path}/c.toml" in told
    assert message in told


def test_a_callback_names_the_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text("max-bad-rows = 'many'\nprompts = 'p'\nout = 'o'\nmodel = 'm'\n")
    with pytest.raises(SystemExit) as stopped, exit_codes():
        root.main(["generate", "--config", "c.toml"], standalone_mode=False)
    assert stopped.value.code == 2
    assert "c.toml, max-bad-rows: 'many'" in capsys.readouterr().err


def test_still_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Missing option '--model'" in failure(capsys, tmp_path, "n = 2")


def test_config_of_real_commands(prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*args: object) -> dict[str, Any]:
        root.main([*map(str, args)], standalone_mode=False)
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    config = tmp_path / "g.toml"
    config.write_text(
        f'engine = "fake"\nmodel = "fake"\nprompts = "{prompts}"\nout = "{tmp_path}/run"\nn = 2\n'
        "max-bad-rows = 0\njson = true\nstop = []\n[map]\nprompt = 'prompt'\n"
    )
    assert printed("generate", "--config", config, "--n", "3")["completions"] == 15
    config.write_text('min-margin = 1e9\nname = "x"\n')
    build(tmp_path / "judged", plain())
    made = printed("pairs", tmp_path / "judged", "--config", config, "--min-margin", "0", "--json")
    assert (made["name"], made["settings"]["min_margin"]) == ("x", 0.0)
