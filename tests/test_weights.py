"""The version of a model's weights is that of their content."""

import os
import time
from pathlib import Path

import pytest

from gavel import weights
from gavel.errors import InputError
from gavel.weights import weights_version


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "cache" / "gavel" / "weights.json"


def model(path: Path, content: bytes = b"weights", **files: str) -> str:
    path.mkdir(parents=True, exist_ok=True)
    (path / "model.safetensors").write_bytes(content)
    for name, text in {"config": "{}", **files}.items():
        (path / f"{name}.json").write_text(text)
    return str(path)


def test_of_content(tmp_path: Path) -> None:
    first = weights_version(model(tmp_path / "a"))
    assert first == weights_version(model(tmp_path / "elsewhere")) == weights_version(str(tmp_path / "a"))
    assert len(first) == 24
    assert first != weights_version(model(tmp_path / "b", b"other"))
    assert first != weights_version(model(tmp_path / "c", config='{"rope_theta": 1}'))
    assert first == weights_version(model(tmp_path / "d", tokenizer="{}", generation_config="{}"))


def test_shards(tmp_path: Path) -> None:
    path = model(tmp_path)
    one = weights_version(path)
    (tmp_path / "model-2.safetensors").write_bytes(b"more")
    two = weights_version(path)
    (tmp_path / "model-2.safetensors").write_bytes(b"MORE")
    assert len({one, two, weights_version(path)}) == 3


def test_what_a_trainer_leaves_beside_them_changes_nothing(tmp_path: Path) -> None:
    path = model(tmp_path)
    before = weights_version(path)
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(os.urandom(8))
    assert weights_version(path) == before
    (tmp_path / "model.safetensors").unlink()
    assert weights_version(path) != before, "of pytorch_model.bin now"
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match="holds no weights"):
        weights_version(path)


def test_not_of_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_RACY_NS", 0)
    path = model(tmp_path / "m")
    before = weights_version(path)
    os.utime(tmp_path / "m" / "model.safetensors", ns=(1, 1))
    assert weights_version(path) == before
    (tmp_path / "m" / "model.safetensors").touch()
    assert weights_version(path) == before


@pytest.mark.parametrize("racy_ns", [0, weights._RACY_NS])
def test_same_size_and_time_but_other_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, racy_ns: int
) -> None:
    monkeypatch.setattr(weights, "_RACY_NS", racy_ns)
    path, file = model(tmp_path / "m"), tmp_path / "m" / "model.safetensors"
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    seen = {weights_version(path)}
    for content in (b"WEIGHTS", b"WeIgHtS"):
        if not racy_ns:
            time.sleep(0.02)  # longer than the clock of the file system ticks
        file.write_bytes(content)
        os.utime(file, ns=times)
        seen.add(weights_version(path))
    assert len(seen) == 3


def test_hashed_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model(tmp_path / "m")
    before = weights_version(path)
    assert not cache.exists(), "so young a file can change again within one tick of the clock"
    monkeypatch.setattr(weights, "_RACY_NS", 0)
    weights_version(path)
    monkeypatch.setattr(weights, "file_hash", lambda file: pytest.fail(f"{file} is hashed again"))
    assert weights_version(path) == before


@pytest.mark.parametrize("content", ["{", "[]", "null", ""])
def test_a_damaged_cache_is_no_failure(content: str, tmp_path: Path, cache: Path) -> None:
    before = weights_version(model(tmp_path / "m"))
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    assert weights_version(str(tmp_path / "m")) == before


def test_no_place_for_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_RACY_NS", 0)
    for home in ("/proc/nowhere", "", "\0"):
        if home == "\0":  # a user without a home
            monkeypatch.setattr(Path, "expanduser", lambda _: (_ for _ in ()).throw(RuntimeError))
            monkeypatch.delenv("XDG_CACHE_HOME")
        else:
            monkeypatch.setenv("XDG_CACHE_HOME", home)
            monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.chdir(tmp_path)
        assert weights_version(model(tmp_path / "m"))
    assert not (tmp_path / "gavel").exists()


def test_adapter(tmp_path: Path) -> None:
    base = model(tmp_path / "m")
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_bytes(content)
        (tmp_path / name / "adapter_config.json").write_text('{"r": 8}')
    a, b, c = (weights_version(base, str(tmp_path / name)) for name in "abc")
    assert a == c
    assert len({weights_version(base), a, b}) == 3
    (tmp_path / "c" / "adapter_config.json").write_text('{"r": 16}')
    assert weights_version(base, str(tmp_path / "c")) != a
    with pytest.raises(InputError, match="holds no weights"):
        (tmp_path / "none").mkdir()
        weights_version(base, str(tmp_path / "none"))


@pytest.mark.parametrize("name", ["nowhere", "no/where", "/no/such/directory", "a b", "owner/name/more", ""])
def test_no_such_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as raised:
        weights_version(name)
    assert "Give a directory" in str(raised.value)


def test_of_a_hub_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The revision in the hub's cache."""
    import huggingface_hub.file_download as hub

    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("f" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("f" * 40)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert weights_version("owner/name") == "f" * 40


def test_what_ends_an_answer_belongs_to_the_version(tmp_path: Path) -> None:
    """Engines stop by generation_config.json, so it shapes answers as weights do; the rest of it does not."""
    plain = weights_version(model(tmp_path / "a"))
    ends = weights_version(model(tmp_path / "b", generation_config='{"eos_token_id": [1, 2]}'))
    assert plain != ends != weights_version(model(tmp_path / "c", generation_config='{"eos_token_id": 1}'))
    assert plain == weights_version(model(tmp_path / "d", generation_config='{"temperature": 0.6}'))
    stops = '{"eos_token_id": [1, 2], "stop_strings": ["END"]}'
    assert weights_version(model(tmp_path / "e", generation_config=stops)) not in (plain, ends)
