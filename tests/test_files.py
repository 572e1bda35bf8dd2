"""Laws: a folder is written whole or not at all; JSON that two readers may read differently is refused."""

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tntune import files
from tntune.errors import CheckpointError, OutputError
from tntune.files import CONFIG_NAME, is_reserved, new_file, new_folder, read_json, write_json, write_text


def tree(path: Path) -> dict[str, bytes]:
    """Content of every file under a folder, by relative path; folders end in a slash, links are files."""
    found = {}
    for item in sorted(path.rglob("*")):
        name = str(item.relative_to(path))
        if item.is_symlink():
            found[name] = os.fsencode(item.readlink())
        elif item.is_dir():
            found[f"{name}/"] = b""
        else:
            found[name] = item.read_bytes()
    return found


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A folder that may be replaced."""
    folder = tmp_path / "adapter"
    (folder / "sub").mkdir(parents=True)
    (folder / CONFIG_NAME).write_text("{}")
    (folder / "sub" / "old").write_text("old")
    return folder


def test_the_folder_has_what_was_written(tmp_path: Path) -> None:
    with new_folder(tmp_path / "new") as folder:
        assert folder.parent == tmp_path
        (folder / "a").write_text("1")
        (folder / "sub").mkdir()
        assert not (tmp_path / "new").exists()
    assert tree(tmp_path) == {"new/": b"", "new/a": b"1", "new/sub/": b""}


def test_a_new_folder_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with new_folder(tmp_path / "new"):
        pass
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_overwriting_leaves_nothing_of_the_old_folder(adapter: Path) -> None:
    with new_folder(adapter, overwrite=True) as folder:
        (folder / "a").write_text("1")
    assert tree(adapter.parent) == {"adapter/": b"", "adapter/a": b"1"}


def test_an_empty_folder_may_be_overwritten(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty", overwrite=True) as folder:
        (folder / "a").write_text("1")
    assert tree(tmp_path) == {"empty/": b"", "empty/a": b"1"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ZeroDivisionError, CheckpointError("own")])
def test_any_exception_leaves_all_as_it_was(
    adapter: Path, error: type[BaseException] | BaseException, overwrite: bool
) -> None:
    before = tree(adapter.parent)
    kind = error if isinstance(error, type) else type(error)
    target = adapter if overwrite else adapter.parent / "new"
    with pytest.raises(kind), new_folder(target, overwrite=overwrite) as folder:  # noqa: PT012
        (folder / "a").write_text("1")
        raise error
    assert tree(adapter.parent) == before


def test_a_full_disk_is_an_output_error(adapter: Path) -> None:
    before = tree(adapter.parent)
    with (
        pytest.raises(OutputError, match="adapter: cannot be written: No space left on device"),
        new_folder(adapter, overwrite=True),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert tree(adapter.parent) == before


@pytest.mark.parametrize("failing", [1, 2], ids=["moving the old folder aside", "moving the new one in"])
def test_a_failed_rename_puts_the_old_folder_back(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    before = tree(adapter.parent)
    real, calls = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == failing:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with (
        pytest.raises(OutputError, match="cannot be written: Permission denied"),
        new_folder(adapter, overwrite=True) as folder,
    ):
        (folder / "a").write_text("1")
    assert tree(adapter.parent) == before


def test_an_old_folder_that_stays_is_named(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = files.shutil.rmtree

    def rmtree(path: Path, ignore_errors: bool = False) -> None:
        if path.suffix == ".old":
            raise PermissionError(errno.EACCES, "Permission denied")
        real(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(files.shutil, "rmtree", rmtree)
    with (
        pytest.raises(OutputError, match=r"written, but the old folder remains as .*\.adapter\..*\.old"),
        new_folder(adapter, overwrite=True) as folder,
    ):
        (folder / "a").write_text("1")
    assert tree(adapter) == {"a": b"1"}


def test_a_parent_that_refuses_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with (
        pytest.raises(OutputError, match="new: cannot be written: Permission denied"),
        new_folder(tmp_path / "new"),
    ):
        pass


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_killed_process_leaves_the_old_folder(adapter: Path, overwrite: bool) -> None:
    target = adapter if overwrite else adapter.parent / "new"
    before = tree(adapter)
    script = (
        "import os, signal, sys\n"
        "from tntune.files import new_folder\n"
        "with new_folder(sys.argv[1], overwrite=sys.argv[2] == 'True') as folder:\n"
        "    (folder / 'a').write_text('1')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(target), str(overwrite)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert tree(adapter) == before
    assert overwrite or not target.exists()
    with new_folder(target, overwrite=overwrite):
        pass


def test_what_is_there_is_kept(tmp_path: Path, adapter: Path) -> None:
    (tmp_path / "file").write_text("1")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("1")
    (tmp_path / "link").symlink_to(adapter)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    cases = [
        ("adapter", False, "exists already; name another path, or overwrite=True"),
        ("file", False, "exists and is not a folder"),
        ("file", True, "exists and is not a folder"),
        ("other", True, "holds no adapter_config.json, so it is no adapter and is not replaced"),
        ("link", True, "is a symbolic link"),
        ("dangling", True, "is a symbolic link"),
        ("none/new", False, "the parent folder .*none does not exist"),
        ("file/new", False, "the parent folder .*file does not exist"),
    ]
    before = tree(tmp_path)
    for name, overwrite, reason in cases:
        with (
            pytest.raises(OutputError, match=f"{re.escape(str(tmp_path / name))}: {reason}"),
            new_folder(tmp_path / name, overwrite=overwrite),
        ):
            pass
    assert tree(tmp_path) == before


def test_an_output_error_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="exists already"), new_folder(tmp_path):
        pass


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=st.dictionaries(st.text(), JSON, max_size=4))
def test_json_comes_back(tmp_path_factory: pytest.TempPathFactory, value: dict[str, object]) -> None:
    file = tmp_path_factory.getbasetemp() / "value.json"
    write_json(file, value)
    assert read_json(file) == value
    assert list(read_json(file)) == list(value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON: Expecting value"),
        (b'{"a": 1} x', "not JSON: Extra data"),
        (b"\xef\xbb\xbf{}", "not JSON: Unexpected UTF-8 BOM"),
        (b'{"a": "\xff"}', "not UTF-8: invalid start byte at byte 7"),
        (b"[]", "must hold an object, not list"),
        (b"1", "must hold an object, not int"),
        (b'{"a": {"b": 1, "b": 1}}', "b: key is repeated"),
        (b'{"a": [NaN]}', "NaN is not a finite number"),
        (b'{"a": -Infinity}', "-Infinity is not a finite number"),
        (b'{"a": 1e400}', "1e400 is not a finite number"),
        (b'{"a": ' + b"[" * 10**5, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON: Exceeds the limit"),
    ],
)
def test_doubtful_json_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "value.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"value\.json: {re.escape(reason)}"):
        read_json(tmp_path / "value.json")


def test_json_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "long.json").open("wb") as file:
        os.truncate(file.fileno(), files.MAX_JSON_BYTES + 1)
    with pytest.raises(
        CheckpointError, match=r"long\.json: 268435457 bytes of JSON; at most 268435456 are read"
    ):
        read_json(tmp_path / "long.json")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.json: cannot be read: No such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        read_json(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_what_has_no_json_form_is_not_written(tmp_path: Path, value: object) -> None:
    with pytest.raises(OutputError, match=r"a\.json: has no JSON form"):
        write_json(tmp_path / "a.json", {"a": value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "a\r\nb\n", "é∆\n"])
def test_text_is_written_as_it_is(tmp_path: Path, text: str) -> None:
    write_text(tmp_path / "card.md", text)
    assert (tmp_path / "card.md").read_bytes() == text.encode()


def test_a_lone_surrogate_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"card\.md: has no UTF-8 form: surrogates not allowed"):
        write_text(tmp_path / "card.md", "\ud800")


def test_a_disk_that_refuses_json_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a\.json: cannot be written: No such file"):
        write_json(tmp_path / "none" / "a.json", {})


def test_a_file_is_what_was_written_and_nothing_beside_it(tmp_path: Path) -> None:
    with new_file(tmp_path / "card") as draft:
        assert draft.parent == tmp_path
        draft.write_text("1")
        assert not (tmp_path / "card").exists()
    assert tree(tmp_path) == {"card": b"1"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, CheckpointError])
def test_any_exception_leaves_the_file_as_it_was(
    tmp_path: Path, error: type[BaseException], overwrite: bool
) -> None:
    (tmp_path / "card").write_text("old")
    target = tmp_path / ("card" if overwrite else "new")

    def interrupted() -> None:
        with new_file(target, overwrite=overwrite) as draft:
            draft.write_text("half")
            raise error("here")

    with pytest.raises(error, match="here"):
        interrupted()
    assert tree(tmp_path) == {"card": b"old"}


def test_a_file_is_replaced_only_where_asked_for(tmp_path: Path) -> None:
    (tmp_path / "card").write_text("old")
    with pytest.raises(OutputError, match="exists already"), new_file(tmp_path / "card"):
        pytest.fail("the block was entered")
    with new_file(tmp_path / "card", overwrite=True) as draft:
        draft.write_text("new")
    assert tree(tmp_path) == {"card": b"new"}


def test_what_refuses_to_be_removed_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "no removal")

    monkeypatch.setattr(os, "unlink", fail)
    with pytest.raises(CheckpointError, match="the first"), new_file(tmp_path / "card"):
        raise CheckpointError("the first")


@pytest.mark.parametrize("name", ["a\0b", "x" * 300], ids=["NUL", "too long"])
@pytest.mark.parametrize("opened", [new_file, new_folder])
def test_impossible_names_are_errors_of_ours(tmp_path: Path, opened: type, name: str) -> None:
    with pytest.raises(OutputError, match="cannot be written"), opened(tmp_path / name) as draft:
        draft.touch()
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    "name", ["CON", "nul", "NUL.json", "com1", "LPT9.safetensors", "lora:half", "C:", "lora::$DATA"]
)
def test_names_of_windows_own_are_known(name: str) -> None:
    assert is_reserved(name, "nt")
    assert not is_reserved(name, "posix")


@pytest.mark.parametrize("name", ["console", "nullable", "com", "com10", "lora-1", "a.nul", "auxiliary.json"])
def test_names_like_them_are_names(name: str) -> None:
    assert not is_reserved(name, "nt")


@pytest.mark.parametrize("opened", [new_folder, new_file])
def test_outputs_of_such_names_are_refused(
    tmp_path: Path, opened: Callable[..., AbstractContextManager[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tntune.files.is_reserved", lambda name: name == "aux")
    with pytest.raises(OutputError, match="Windows has a device or a stream"), opened(tmp_path / "aux"):
        pass
    assert not list(tmp_path.iterdir())


def test_devices_and_pipes_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "zero").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    for name in ("zero", "pipe"):
        with pytest.raises(CheckpointError, match=f"{name}: is no file"):
            read_json(tmp_path / name)
