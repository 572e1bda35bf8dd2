"""Disks and folders that refuse: full, read-only, forbidden, linked, taken away under the reader."""

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch

from tests.cli.command import Ran, tntune
from tests.reliability.campaign import Campaign, Tally, drawn
from tests.reliability.operation import OPERATIONS, Operation, digest, listing, sources
from tntune.convert import ConversionSettings, Target, convert_lora
from tntune.errors import OutputError, TntuneError

__all__ = ["CAMPAIGNS"]

NOBODY = 65534
COMMANDS = tuple(operation for operation in OPERATIONS if operation.command)


class Place:
    """A folder with every source, in which commands are refused."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.chmod(0o755)
        for path in sources(root / "in").rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        self.out = root / "out"
        self.out.mkdir()
        self.before = digest(root / "in")

    def refused(self, operation: Operation, output: Path, *options: str, source: Path | None = None) -> Ran:
        """Run the command, which must be refused in one line and change nothing."""
        source = source or self.root / "in" / operation.source
        before = listing(self.root)
        ran = tntune(*operation.command[:1], source, "-o", output, *operation.command[1:], *options)
        assert ran.code == 2, ran
        assert ran.out == "", ran
        usage = ran.err.startswith("Usage: ") and "Traceback" not in ran.err
        assert usage or (ran.err.startswith("error: ") and ran.err.count("\n") == 1), ran.err
        assert listing(self.root) == before, f"left behind: {sorted(listing(self.root) - before)}"
        return ran


def _in_child(work: Callable[[], None]) -> None:
    """Run the work in a forked child, whose limits and user are its own; AssertionError with what it said."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code, said = 1, ""
        try:
            work()
            code = 0
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            os.write(writing, said.encode()[:4000])
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, said


def _full(place: Place, draw: Random) -> str:
    """A disk that is full after a drawn number of bytes, by the limit on the size of files."""
    operation = draw.choice(COMMANDS)
    size = draw.choice((0, 1, draw.randrange(500)))  # below that of any file that is written

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        place.refused(operation, place.out / operation.output)

    _in_child(work)
    return "full disk"


def _no_space(place: Place, draw: Random) -> str:
    """A real file system without room, where this process may mount one."""
    operation = draw.choice(COMMANDS)
    small = place.root / "small"
    if not small.exists():
        small.mkdir()
    pages = draw.choice((0, 0, 1))  # one is enough for the configuration, not for the tensors beside it
    options = f"size={4096 * 4}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", small], capture_output=True)
    if mounted.returncode:
        return "not tried: no right to mount a small file system"
    try:
        (small / "filler").write_bytes(bytes(4096 * (4 - (pages if operation.output == "out" else 0))))
        place.refused(operation, small / operation.output)
    finally:
        subprocess.run(["umount", small], check=True)
    return "full file system"


def _forbidden(place: Place, draw: Random) -> str:
    """A folder that the user may not write to; root drops its rights first."""
    operation = draw.choice(COMMANDS)
    shut = place.root / "shut"
    if not shut.exists():
        shut.mkdir(mode=0o555)

    def work() -> None:
        if os.geteuid() == 0:
            os.setuid(NOBODY)
        ran = place.refused(operation, shut / operation.output)
        assert "ermission denied" in ran.err, ran.err

    _in_child(work)
    return "read-only folder"


def _unreadable(place: Place, draw: Random) -> str:
    """A source that the user may not read."""
    operation = draw.choice(COMMANDS)
    secret = place.root / "secret" / operation.source
    if not secret.exists():
        secret.parent.mkdir(exist_ok=True)
        own = place.root / "in" / operation.source
        _copy(own, secret)
        for file in [secret, *secret.rglob("*")]:
            if file.is_file():
                file.chmod(0)

    def work() -> None:
        if os.geteuid() == 0:
            os.setuid(NOBODY)
        place.refused(operation, place.out / operation.output, source=secret)

    _in_child(work)
    return "unreadable source"


def _linked(place: Place, draw: Random) -> str:
    """An output that is a link: to a folder, to a file, to nothing, to itself."""
    operation = draw.choice([each for each in COMMANDS if each.output == "out"])
    link = place.out / "link"
    target = draw.choice((place.root / "in", place.root / "in" / "lora", place.root / "nothing", link))
    link.symlink_to(target)
    try:
        place.refused(operation, link, *draw.choice(((), ("--overwrite",))))
    finally:
        link.unlink()
    return "linked output"


def _same(place: Place, draw: Random) -> str:
    """An output that is the source, lies inside it, or holds it; by whatever name."""
    operation = draw.choice(COMMANDS)
    source = place.root / "in" / operation.source
    names = [source, place.root / "out" / ".." / "in" / operation.source, place.root / "in"]
    if source.is_dir():
        names.append(source / "deeper")
    place.refused(operation, draw.choice(names), "--overwrite")
    return "output is the source"


def _named(place: Place, draw: Random) -> str:
    """A name that no file system has, or that is taken by what is no adapter."""
    operation = draw.choice(COMMANDS)
    busy = place.root / "busy"
    if not busy.exists():
        busy.mkdir()
        (busy / "thesis.txt").write_text("years of work")
    suffix = Path(operation.output).suffix
    output = draw.choice(
        (
            place.out / ("x" * 300 + suffix),
            place.out / ("y" * 250 + suffix),
            place.root / "in" / "one.safetensors" / ("out" + suffix),
            place.root / "no" / "such" / ("folder" + suffix),
            busy,
        )
    )
    place.refused(operation, output, *draw.choice(((), ("--overwrite",))))
    return "impossible name"


def _vanished(place: Place, draw: Random) -> str:
    """A source that goes, shrinks or changes while it is read."""
    moving = place.root / "moving"
    shutil.rmtree(moving, ignore_errors=True)
    _copy(place.root / "in" / "lora", moving)
    weights, kind, at = moving / "adapter_model.safetensors", draw.randrange(4), draw.randrange(1, 8)
    content = weights.read_bytes()
    seen = 0

    def change(stage: str, done: int, total: int) -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            if kind == 0:
                weights.unlink()
            elif kind == 1:
                weights.rename(weights.with_name("elsewhere"))
            elif kind == 2:
                _replaced(weights, content[: draw.randrange(len(content))])
            else:
                _replaced(weights, draw.randbytes(len(content)))

    output = place.out / "out"
    try:
        convert_lora(moving, output, ConversionSettings(Target(max_rank=2)), progress=change)
    except TntuneError:
        assert not listing(place.out), f"left behind: {listing(place.out)}"
        return "source gone: refused"
    assert seen < at or at > 7, "the change went unseen"
    shutil.rmtree(output)
    return "source whole"


def _replaced(path: Path, content: bytes) -> None:
    """New content under an old name, as editors and downloads put it there."""
    path.unlink()
    path.write_bytes(content)


def _special(place: Place, draw: Random) -> str:
    """A source whose files are devices, pipes, folders or links to nothing."""
    operation = draw.choice([each for each in COMMANDS if each.output == "out"])
    odd = place.root / "odd"
    shutil.rmtree(odd, ignore_errors=True)
    _copy(place.root / "in" / operation.source, odd)
    path = odd / draw.choice(("adapter_config.json", "adapter_model.safetensors"))
    path.unlink()
    made: tuple[Callable[[], object], ...] = (
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to("/dev/null"),
        lambda: path.symlink_to("nowhere"),
        lambda: path.symlink_to(path),
        lambda: os.mkfifo(path),
        path.mkdir,
    )
    draw.choice(made)()
    place.refused(operation, place.out / "out", source=odd)
    return "special file"


def _failing(place: Place, draw: Random) -> str:
    """A call of the system that fails, any one of those that write, rename or remove."""
    operation = draw.choice(OPERATIONS)
    name, error = draw.choice(CALLS), OSError(draw.choice((28, 5, 13, 30, 122)), "the system refuses")
    left, output = draw.randrange(3), place.out / operation.output
    overwrite = draw.random() < 0.5
    if overwrite:
        operation.run(place.root / "in" / operation.source, output, False)
    old, real, calls = digest(output), getattr(os, name), 0

    def fail(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == left + 1:
            raise error
        return real(*arguments, **named)

    end = "right"
    with patch.object(os, name, fail):
        try:
            operation.run(place.root / "in" / operation.source, output, overwrite)
        except OutputError:
            end = "refused"
    if end == "refused" and calls <= left:
        raise AssertionError("refused, and no call had failed")
    strays = {path for path in listing(place.out) if not path.startswith(operation.output)}
    if name not in ("rmdir", "unlink"):
        assert not strays, f"{name}: left behind: {sorted(strays)}"
        assert end == "right" or digest(output) == old, f"{name}: the old output was changed"
    return f"failing system call: {end}"


CALLS = ("mkdir", "rename", "replace", "chmod", "unlink", "rmdir")
"""Calls that the writers make through Python; writing itself fails where the disk is full."""


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)


FAULTS = (
    _full,
    _no_space,
    _forbidden,
    _unreadable,
    _linked,
    _same,
    _named,
    _vanished,
    _special,
    _failing,
)


def run(cases: int) -> Tally:
    """Every fault in turn, each with drawn particulars."""
    tally = Tally()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        place = Place(Path(folder))
        for number in range(cases):
            fault = FAULTS[number % len(FAULTS)]
            shutil.rmtree(place.out)
            place.out.mkdir()
            draw = drawn("disk", number)
            tally.attempt(f"{fault.__name__} {number}", lambda f=fault, d=draw: f(place, d))
            if digest(place.root / "in") != place.before:
                tally.failed(f"{fault.__name__} {number}: the input was changed")
                break
    return tally


CAMPAIGNS = (
    Campaign(
        "disk",
        "disk full, read-only or unreadable folder, linked, impossible or equal output, vanishing source, "
        "devices and pipes, failing system calls: our error (exit code 2, one line), nothing half written",
        run,
        800,
        60,
        (
            "a link to itself as output was a traceback: now refused",
            "a failing removal of a draft hid the error that led to it, or was raised raw: now neither",
            "an output's name with NUL, or too long, raised no error of ours: now OutputError",
        ),
    ),
)
