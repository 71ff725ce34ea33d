"""The run directory: killed at any moment nothing recorded is lost, nothing is doubled."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gavel.errors import InputError, RunDirError
from gavel.records import Completion, encode
from gavel.rundir import Index, JsonlWriter, RunDir, count_lines, read_records
from gavel.versions import versions

NEW = {"format": 1, "versions": versions()}  # the manifest of a new run

APPENDS = """
import sys
from gavel.records import Completion
from gavel.rundir import JsonlWriter, RunDir
with RunDir.open(sys.argv[1]) as run:
    done = run.ids(run.completions_path)
    with JsonlWriter(run.completions_path) as writer:
        for i in range(int(sys.argv[2])):
            if f"c{i}" not in done:
                record = Completion(id=f"c{i}", prompt_id="p", index=i, text="x" * (i % 977))
                writer.append(record)
                print(f"c{i}", flush=True)
    run.finish_stage("generate", {"completions": i + 1})
"""
HOLDS = """
import sys, time
from gavel.rundir import RunDir
with RunDir.open(sys.argv[1]) as run:
    print("held", flush=True)
    time.sleep(60)
"""


def child(program: str, *args: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-P", "-c", program, *map(str, args)], stdout=subprocess.PIPE, text=True
    )


def completion(i: int, text: str = "text", prompt: str | None = None) -> Completion:
    return Completion(id=f"c{i}", prompt_id=prompt or f"p{i}", index=0, text=text)


def completions(path: Path) -> list[Completion]:
    return list(read_records(path, Completion))


@pytest.fixture
def holder(tmp_path: Path) -> "Iterator[subprocess.Popen[str]]":
    """Another process that has RUN open."""
    process = child(HOLDS, tmp_path / "run")
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


# kills


@pytest.mark.slow
def test_killed_ten_times(tmp_path: Path) -> None:
    path, draw = tmp_path / "run", random.Random(0)
    acknowledged: list[str] = []
    for _ in range(10):
        process = child(APPENDS, path, 10**7)
        assert process.stdout is not None
        acknowledged.append(process.stdout.readline().strip())
        time.sleep(draw.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        acknowledged += [
            line.strip() for line in process.communicate()[0].splitlines(True) if line[-1] == "\n"
        ]
        if draw.random() < 0.5:  # a kill leaves whole lines nearly always; a power cut does not
            whole = RunDir(path).completions_path.read_bytes()
            RunDir(path).completions_path.write_bytes(whole + whole[: draw.randrange(1, 60)])
        assert "stages" not in RunDir(path).manifest()
    assert len(acknowledged) > 100
    count = len(completions(RunDir(path).completions_path)) + 5
    last = child(APPENDS, path, count)
    acknowledged += last.communicate()[0].split()
    assert last.returncode == 0
    found = [c.id for c in completions(RunDir(path).completions_path)]
    assert found == [f"c{i}" for i in range(count)], "nothing lost, doubled or out of order"
    assert set(acknowledged) <= set(found)
    assert len(acknowledged) == len(set(acknowledged)), "nothing acknowledged twice"
    assert RunDir(path).stage("generate") == {"completions": count}


def test_torn_line_is_ignored_by_readers_and_cut_by_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    whole = encode(completion(0)) + encode(completion(1, "y" * 200_000))
    torn = encode(completion(2, "z" * 150_000))[:-1]  # whole but for its newline
    for tail in (b"{", torn, b"\0" * 10, b"\xff"):
        path.write_bytes(whole + tail)
        assert [c.id for c in completions(path)] == ["c0", "c1"]
        assert RunDir(tmp_path).ids(path) == {"c0", "c1"}
        assert [c.id for c in Index(path).read("p1", Completion)] == ["c1"]
        assert count_lines([path, tmp_path / "none"]) == 2
        with JsonlWriter(path) as writer:
            assert writer.cut == len(tail)
            assert path.read_bytes() == whole
            writer.append(completion(2))
        assert path.read_bytes() == whole + encode(completion(2))


def test_only_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "completions.jsonl"
    assert completions(path) == []
    path.parent.mkdir()
    path.write_bytes(b'{"record": "compl')
    with JsonlWriter(path) as writer:
        assert (writer.cut, path.stat().st_size) == (17, 0)
    with JsonlWriter(path) as writer:
        assert writer.cut == 0


def test_each_record_is_there_when_append_returns(tmp_path: Path) -> None:
    with JsonlWriter(tmp_path / "f.jsonl") as writer:
        for i in range(5):
            writer.append(completion(i))
            assert len(completions(writer.path)) == i + 1


def test_a_line_in_the_middle_that_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    for damage in (b"{\n", b"\n", b"null\n", b'{"id": 3}\n', b'{"prompt_id": "p"}\n', b'{"id": "\xff"}\n'):
        path.write_bytes(encode(completion(0)) + damage + encode(completion(1)))
        for read in (lambda: RunDir(tmp_path).ids(path), lambda: Index(path), lambda: completions(path)):
            with pytest.raises(RunDirError, match="not a ") as raised:
                read()
            assert raised.value.where == f"{path}:2"
        with pytest.raises(RunDirError, match="Delete this line"):
            RunDir(tmp_path).ids(path)


# the lock


def test_a_second_process_is_refused_and_told_who(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    with pytest.raises(RunDirError) as raised, RunDir.open(tmp_path / "run"):
        raise AssertionError
    message = str(raised.value)
    assert f"in use by process {holder.pid} on " in message
    assert f"(-c {tmp_path}/run)" in message  # its command, as far as it says what is going on
    assert "--out" in message
    assert RunDir(tmp_path / "run").manifest() == NEW, "readers need no lock"


def test_the_lock_ends_with_its_process(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    holder.kill()
    holder.wait()
    with RunDir.open(tmp_path / "run"):
        assert f"process {os.getpid()}" in (tmp_path / "run" / ".lock").read_text()
        with pytest.raises(RunDirError, match=f"process {os.getpid()}"), RunDir.open(tmp_path / "run"):
            raise AssertionError
    assert (tmp_path / "run" / ".lock").read_text() == ""
    with RunDir.open(tmp_path / "run"):
        pass


def test_the_lock_is_freed_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunDir.open(tmp_path):
        _ = 1 / 0
    (tmp_path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(RunDirError, match="of version 99"), RunDir.open(tmp_path):
        raise AssertionError
    (tmp_path / "manifest.json").unlink()
    with RunDir.open(tmp_path):
        pass


# versions and bad places


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ('{"format": 2}', "run directory of version 2, this gavel reads up to 1\n  Update gavel"),
        ('{"format": "x"}', "version x"),
        ('{"format": null}', "not the manifest"),
        ('{"format": 1', "not the manifest of a run\n  Delete it"),
        ("[]", "not the manifest"),
        ("", "not the manifest"),
    ],
)
def test_manifests_that_are_refused(manifest: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(RunDirError, match=message):
        RunDir(tmp_path).manifest()
    with pytest.raises(RunDirError, match=message), RunDir.open(tmp_path):
        raise AssertionError
    assert (tmp_path / "manifest.json").read_text() == manifest


def test_places_that_cannot_be_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"), RunDir.open(tmp_path / "file"):
        raise AssertionError
    with (
        pytest.raises(InputError, match="cannot be written: Not a directory"),
        RunDir.open(tmp_path / "file/x"),
    ):
        raise AssertionError
    with pytest.raises(InputError, match="cannot be written"), RunDir.open("/proc/gavel"):
        raise AssertionError
    with pytest.raises(InputError, match="cannot be written"):
        JsonlWriter(tmp_path / "file" / "f.jsonl")


# a full disk


def test_a_short_write_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with JsonlWriter(tmp_path / "f.jsonl") as writer:
        writer.append(completion(0))
        whole, file = writer.path.read_bytes(), writer._file
        for written in (7, 0, 7):  # the second time nothing at all fits

            class Full:
                def __getattr__(self, name: str) -> object:
                    return getattr(file, name)

                def write(self, line: bytes, written: int = written) -> int:
                    if not written:
                        raise OSError(28, "No space left on device")
                    return file.write(line[:written])

            monkeypatch.setattr(writer, "_file", Full())
            with pytest.raises(
                InputError, match="no space left on the disk\n  Free some space and run the same"
            ):
                writer.append(completion(1))
            monkeypatch.setattr(writer, "_file", file)
            assert writer.path.read_bytes() == whole
        writer.append(completion(1))
    assert [c.id for c in completions(writer.path)] == ["c0", "c1"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=64k,nr_inodes=20", "gavel-test", str(disk)]
    if mount is None or subprocess.run([mount, *options], capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root only")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    path = small_disk / "run" / "completions.jsonl"
    count = 0
    with RunDir.open(path.parent) as run:
        with (
            pytest.raises(InputError, match="no space left on the disk") as raised,
            JsonlWriter(path) as writer,
        ):
            for i in range(200):
                writer.append(completion(i, "x" * 1000))
                count += 1
        assert raised.value.where == str(path)
        assert [c.id for c in completions(path)] == [f"c{i}" for i in range(count)]
        assert path.read_bytes().endswith(b"\n")
        with pytest.raises(InputError, match="no space left"):
            run.finish_stage("generate", {"much": "x" * 60_000})
    assert RunDir(path.parent).manifest() == NEW, "the old manifest is whole"
    assert not list(path.parent.glob(".*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    with RunDir.open(path.parent) as run, JsonlWriter(path) as writer:
        assert run.ids(path) == {f"c{i}" for i in range(count)}
        writer.append(completion(count))
    assert len(completions(path)) == count + 1


def test_a_full_disk_from_the_start(small_disk: Path) -> None:
    """No room for a directory, a lock, a file: the same message each time."""
    refused = 0
    for i in range(25):
        try:
            with RunDir.open(small_disk / f"run{i}") as run, JsonlWriter(run.completions_path):
                pass
        except InputError as error:
            refused += 1
            assert "no space left on the disk" in str(error)
    assert 15 < refused < 25


# manifest


def test_the_manifest_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunDir.open(tmp_path) as run:
        run.finish_stage("generate", {"n": 1, "text": "我"})
        run.note(policy="m")
        before = (tmp_path / "manifest.json").read_bytes()

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", die)
            with pytest.raises(KeyboardInterrupt):
                run.finish_stage("judge/x", {})
        assert (tmp_path / "manifest.json").read_bytes() == before
        assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "manifest.json"]
        assert run.stage("generate") == {"n": 1, "text": "我"}
        assert run.stage("judge/x") == {}
        run.reopen_stage("generate")
        run.reopen_stage("never")
    assert json.loads(before) == NEW | {"stages": {"generate": {"n": 1, "text": "我"}}, "policy": "m"}
    assert RunDir(tmp_path).manifest() == NEW | {"stages": {}, "policy": "m"}


def test_a_run_can_be_moved(tmp_path: Path) -> None:
    with RunDir.open(tmp_path / "a") as run:
        with JsonlWriter(run.judgments_path("pass")) as writer:
            writer.append(completion(0))
        run.finish_stage("generate", {})
    assert str(tmp_path) not in (tmp_path / "a" / "manifest.json").read_text()
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "a").rename(tmp_path / "deep" / "er" / "b")
    with RunDir.open(tmp_path / "deep" / "er" / "b") as moved:
        assert moved.judging_passes() == ["pass"]
        assert moved.ids(moved.judgments_path("pass")) == {"c0"}
        assert moved.stage("generate") == {}
        assert "generate" in moved.manifest()["stages"]


# the index


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["p", "q", "", "我", "p\n", "p" * 50]), st.text("ab\n我", max_size=30))
    )
)
def test_index_finds_every_record(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "index.jsonl"
    records = [Completion(id=f"c{i}", prompt_id=p, index=i, text=t) for i, (p, t) in enumerate(rows)]
    path.write_bytes(b"".join(map(encode, records)))
    index = Index(path)
    for prompt in {p for p, _ in rows} | {"none"}:
        assert index.read(prompt, Completion) == [r for r in records if r.prompt_id == prompt]
    index.close()


def test_index_of_no_file(tmp_path: Path) -> None:
    assert Index(tmp_path / "none").read("p", Completion) == []


def test_reading_streams(tmp_path: Path) -> None:
    """16 MB of records in well under 2 MB; the index takes a few bytes a record."""
    path, count = tmp_path / "f.jsonl", 8000
    with open(path, "wb") as file:
        for i in range(count):
            file.write(encode(completion(i, "x" * 2000, prompt=f"p{i // 4}")))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_records(path, Completion)) == count
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.reset_peak()
        index = Index(path)
        assert len(index.read("p77", Completion)) == 4
        kept, peak = tracemalloc.get_traced_memory()
        assert kept < 40 * count
        assert peak < 3_000_000
    finally:
        tracemalloc.stop()


def test_the_newest_pass_is_the_one_finished_last_wherever_the_run_was_copied(tmp_path: Path) -> None:
    with RunDir.open(tmp_path / "run") as run:
        for name in ("a", "b", "c"):
            with JsonlWriter(run.judgments_path(name)) as writer:
                writer.append_line(b"{}\n")
        for name in ("b", "c", "a", "b"):
            run.finish_stage(f"judge/{name}", {})
    for age, name in enumerate(("a", "b", "c")):  # as a copy may have it
        os.utime(RunDir(tmp_path / "run").judgments_path(name), (age, age))
    assert RunDir(tmp_path / "run").judging_passes() == ["c", "a", "b"]


def test_a_folder_of_other_things_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"other files \(thesis.tex\)"), RunDir.open(tmp_path):
        raise AssertionError
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
