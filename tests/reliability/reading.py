"""Files that lie: every reader returns or raises our errors, in bounded time and memory, and runs nothing.

A seeded mutator over valid files rather than Hypothesis: a case costs under a millisecond, needs no shrinking
since it is one file and at most sixteen changes, and is repeated from its number alone.
"""

import json
import os
import pickle
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import FrameType

import torch
from safetensors.torch import save

from tests.checkpoint import lora_files, sample
from tests.checkpoint.test_groups import pieces
from tests.checkpoint.test_library import MEMBERS, groups
from tests.cli.command import tntune
from tests.convert.sample import Model
from tests.reliability.campaign import Campaign, Stopwatch, Tally, drawn
from tests.reliability.mutation import mutated_bytes, mutated_header, mutated_json, strange_name
from tntune.adapters import load_adapters
from tntune.checkpoint import (
    Calibration,
    open_adapter,
    open_calibration,
    open_lora,
    open_lora_file,
    open_tensorguide,
    save_calibration,
    write_groups,
)
from tntune.checkpoint.library import open_library
from tntune.checkpoint.library_writer import write_library
from tntune.checkpoint.tensor_file import write_tensors
from tntune.convert import ConversionSettings, Target, convert_lora
from tntune.errors import TntuneError
from tntune.files import CONFIG_NAME

__all__ = ["CAMPAIGNS"]

SECONDS, MEBIBYTES = 5.0, 256.0
"""What one case may take of the processor and of memory; a valid file takes a millisecond."""

TENSORS, BIN = sample.TENSORS, "adapter_model.bin"

Case = Callable[[Random, Path], str]
"""Damages the file of a drawn case below a folder, reads it, and names its right end."""


class SlowError(BaseException):
    """A case that was stopped; no Exception, which a reader might take for its own."""


def read_lora(folder: Path, *, carry: bool = False) -> None:
    lora = open_lora(folder, carry=carry)
    for site in lora.sites:
        lora.load(site)
    for key in lora.passthrough:
        lora.tensor(key)


def read_guide(folder: Path, *, carry: bool = False) -> None:
    guide = open_tensorguide(folder, carry=carry)
    for name, site in guide.sites.items():
        site.factors(guide.load(name))
    for key in guide.passthrough:
        guide.tensor(key)


def read_library(folder: Path, *, carry: bool = False) -> None:
    library = open_library(folder)
    for name in library.members:
        member = library.member(name)
        for module in member.sites:
            member.load(module)


READERS = {"lora": read_lora, "guide": read_guide, "group": read_guide, "library": read_library}


def read_file(path: Path, *, carry: bool = False) -> None:
    lora = open_lora_file(path, carry=carry)
    for site in lora.sites:
        lora.load(site)
    for key in lora.passthrough:
        lora.tensor(key)


def ended(read: Callable[[], object]) -> str:
    """How a reader ended; anything but a return and an error of ours goes on up."""
    try:
        read()
    except TntuneError:
        return "refused"
    return "read"


@contextmanager
def stopped(seconds: float) -> Iterator[None]:
    """Raise :class:`SlowError` where the block computes for longer; ``re`` is interrupted too."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SlowError(f"was stopped after {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


class Valid:
    """Valid files of every kind, made once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        sample.lora_folder(root / "lora", rank_pattern={"h.1.fc": 2}, alpha_pattern={".*0.fc": 4})
        from_lora = ConversionSettings(Target(params=0.7))
        convert_lora(root / "lora", root / "guide", from_lora)
        write_groups(root / "group", pieces(), config={})
        write_library(root / "library", MEMBERS, groups())
        for style in lora_files.PLACES:
            made = lora_files.tensors(style, lora_files.ALPHAS["one alpha"])
            write_tensors(root / f"{style}.safetensors", made)
        stated = json.dumps({"unet.r": 4, "unet.lora_alpha": 8, "unet.rank_pattern": {"mid_block.0.ff": 3}})
        made = lora_files.tensors("peft unet", {})
        texts = {"format": "pt", "lora_adapter_metadata": stated}
        write_tensors(root / "stated.safetensors", made, metadata=texts)
        eye = torch.eye(5)
        calibration = Calibration({"fc": eye}, {"fc": torch.ones(2, 3)}, {"fc": "fc"}, {"tokens": 9})
        save_calibration(root / "calibration.safetensors", calibration)
        (root / "one").mkdir()

    def content(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def files(self) -> list[str]:
        """The single LoRA files."""
        return sorted(path.name for path in self.root.glob("*.safetensors") if path.stem != "calibration")


def place(folder: Path, config: bytes, tensors: bytes, name: str = TENSORS) -> None:
    """One adapter folder of these contents."""
    other = BIN if name == TENSORS else TENSORS
    if (folder / other).exists():
        (folder / other).unlink()
    (folder / CONFIG_NAME).write_bytes(config)
    (folder / name).write_bytes(tensors)


class Fuzz:
    """The damages, over one set of valid files."""

    def __init__(self, root: Path) -> None:
        self.valid, self.one = Valid(root), root / "one"
        kinds = ("lora", "guide", "group", "library")
        self.config = {kind: self.valid.content(f"{kind}/{CONFIG_NAME}") for kind in kinds}
        self.tensors = {kind: self.valid.content(f"{kind}/{TENSORS}") for kind in self.config}
        self.single = {name: self.valid.content(name) for name in self.valid.files()}
        self.calibration_bytes = self.valid.content("calibration.safetensors")

    def configuration(self, draw: Random) -> str:
        """adapter_config.json: types, nesting, missing and repeated keys, huge numbers, expressions."""
        kind = draw.choice(list(self.config))
        if draw.random() < 0.2:
            config = mutated_bytes(draw, self.config[kind])
        else:
            text = mutated_json(draw, json.loads(self.config[kind]))
            config = text.encode("utf-8", "surrogatepass")
        place(self.one, config, self.tensors[kind])
        return ended(self._reader(draw, kind))

    def header(self, draw: Random) -> str:
        """The safetensors file of a folder."""
        kind = draw.choice(list(self.config))
        change = mutated_bytes if draw.random() < 0.3 else mutated_header
        place(self.one, self.config[kind], change(draw, self.tensors[kind]))
        return ended(self._reader(draw, kind))

    def single_file(self, draw: Random) -> str:
        """A file of kohya's scripts or diffusers: bytes, header, keys, alphas."""
        content = self.single[draw.choice(list(self.single))]
        change = draw.choice((mutated_bytes, mutated_header, mutated_header, self._keys))
        path = self.one / "one.safetensors"
        path.write_bytes(change(draw, content))
        carry = draw.random() < 0.5
        return ended(lambda: read_file(path, carry=carry))

    def calibration(self, draw: Random) -> str:
        """A calibration file: bytes, header, what its metadata says."""
        kind = draw.randrange(3)
        if kind == 2:
            size = struct.unpack("<Q", self.calibration_bytes[:8])[0]
            header = json.loads(self.calibration_bytes[8 : 8 + size])
            about = json.loads(header["__metadata__"]["tntune"])
            header["__metadata__"]["tntune"] = mutated_json(draw, about)
            text = json.dumps(header).encode()
            content = struct.pack("<Q", len(text)) + text + self.calibration_bytes[8 + size :]
        else:
            content = (mutated_bytes, mutated_header)[kind](draw, self.calibration_bytes)
        path = self.one / "c.safetensors"
        path.write_bytes(content)
        return ended(lambda: open_calibration(path))

    def pickled(self, draw: Random) -> str:
        """adapter_model.bin: damaged archives, old pickles, and pickles that would run code."""
        state = {key: value for key, value in sample.lora_tensors().items()}
        kind, path = draw.randrange(5), self.one / "state.bin"
        if kind == 0:
            content = pickle.dumps({"a": Payload(self.one / "ran", draw.randrange(4))}, draw.randrange(2, 6))
        else:
            key = draw.choice(list(state))
            state[key] = draw.choice(ODD_TENSORS)() if draw.random() < 0.5 else state[key]
            loaded = Payload(self.one / "ran", 0)
            others = (list(state), {"a": state}, {1: state[key]}, {**state, key: loaded})
            made = state if kind > 2 else draw.choice(others)
            torch.save(made, path, _use_new_zipfile_serialization=draw.random() < 0.5)
            content = path.read_bytes()
            content = content if draw.random() < 0.4 else mutated_bytes(draw, content)
        place(self.one, self.config["lora"], content, BIN)
        end = ended(lambda: read_lora(self.one, carry=True))
        if (self.one / "ran").exists():
            raise AssertionError("code of a pickle was run")
        return end

    def command(self, draw: Random) -> str:
        """``tntune inspect`` on damaged folders: exit code 0 or 2, one line on stderr."""
        kind = draw.choice(list(self.config))
        if draw.random() < 0.5:
            text = mutated_json(draw, json.loads(self.config[kind]))
            place(self.one, text.encode("utf-8", "surrogatepass"), self.tensors[kind])
        else:
            place(self.one, self.config[kind], mutated_header(draw, self.tensors[kind]))
        ran = tntune("inspect", self.one, *(["--json"] if draw.random() < 0.5 else []))
        ran.out.encode()
        if ran.code == 0:
            return "read"
        assert ran.code == 2, ran
        assert ran.err.count("\n") == 1, ran.err
        assert ran.err.strip().isprintable(), repr(ran.err)
        return "refused"

    def _reader(self, draw: Random, kind: str) -> Callable[[], object]:
        """A reader, mostly one for that kind of folder."""
        carry = draw.random() < 0.5
        own = READERS[kind]
        others: tuple[Callable[[], object], ...] = (
            lambda: open_adapter(self.one, carry=carry),
            lambda: load_adapters(Model(), self.one),
            lambda: read_lora(self.one, carry=carry),
            lambda: read_guide(self.one, carry=carry),
        )
        return draw.choice(others) if draw.random() < 0.3 else lambda: own(self.one, carry=carry)

    def _keys(self, draw: Random, content: bytes) -> bytes:
        """The file with keys renamed, and odd alphas beside the factors."""
        from_bytes = {key: torch.ones(shape) for key, shape in _shapes(content).items()}
        for _ in range(draw.choice((1, 1, 2, 5))):
            key = draw.choice(list(from_bytes))
            name = strange_name(draw, key)
            if name.isascii() and "\0" not in name and name != "__metadata__":
                from_bytes[name] = from_bytes.pop(key)
            if draw.random() < 0.3:
                from_bytes[f"{key.rsplit('.', 2)[0]}.alpha"] = draw.choice(ODD_ALPHAS)
        return save({key: value.clone() for key, value in from_bytes.items()})


ODD_ALPHAS = (
    torch.tensor(0.0),
    torch.tensor(float("nan")),
    torch.tensor(float("inf")),
    torch.tensor(-1e38),
    torch.tensor([1.0, 2.0]),
    torch.tensor([]),
    torch.tensor([[3.0]]),
    torch.tensor(True),
    torch.tensor(3, dtype=torch.int64),
    torch.tensor(1.0).to(torch.float8_e4m3fn),
    torch.tensor(1j),
)

ODD_TENSORS: tuple[Callable[[], object], ...] = (
    lambda: torch.ones(1).expand(2**40),
    lambda: torch.ones(1, 1).expand(2**20, 2**20),
    lambda: torch.ones(2, 5).T,
    lambda: torch.ones(2, 5, device="meta"),
    lambda: torch.ones(2, 5).to_sparse(),
    lambda: torch.quantize_per_tensor(torch.ones(2, 5), 0.1, 0, torch.qint8),
    lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    lambda: torch.ones(2, 5, dtype=torch.complex128),
    lambda: torch.ones(2, 5, dtype=torch.complex64).conj(),
    lambda: torch.nn.Parameter(torch.ones(2, 5)),
    lambda: torch.ones(2, 0),
    lambda: torch.tensor(1.0),
    lambda: 3,
    lambda: None,
)


class Payload:
    """A pickle that makes a folder when it is loaded as pickles are."""

    def __init__(self, path: Path, way: int) -> None:
        self.path, self.way = path, way

    def __reduce__(self) -> tuple[object, ...]:
        code = f"__import__('os').mkdir({str(self.path)!r})"
        ways: tuple[tuple[object, ...], ...] = (
            (os.mkdir, (str(self.path),)),
            (eval, (code,)),
            (exec, (code,)),
            (os.system, (f"mkdir '{self.path}'",)),
        )
        return ways[self.way]


def _shapes(content: bytes) -> dict[str, list[int]]:
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    return {key: entry["shape"] for key, entry in header.items() if key != "__metadata__"}


def listing(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def run(name: str, cases: int) -> Tally:
    """Damage and read, as often as asked for."""
    tally = Tally()
    with TemporaryDirectory() as outer:
        root = Path(outer) / "in" / "side"
        root.mkdir(parents=True)
        fuzz = Fuzz(root)
        damage: Callable[[Random], str] = getattr(fuzz, name)
        watch = Stopwatch(SECONDS, MEBIBYTES)
        for number in range(cases):
            draw = drawn(name, number)

            def case(draw: Random = draw) -> str:
                try:
                    with stopped(SECONDS):
                        return damage(draw)
                except SlowError as error:
                    raise AssertionError(str(error)) from error

            tally.attempt(f"{name} {number}", case)
            if excess := watch.excess():
                tally.failures += 1
                tally.shown.append(f"{name} {number}: {excess}")
        strays = listing(Path(outer)) - {"in", "in/side"} - {f"in/side/{path}" for path in listing(root)}
        strays |= {path for path in listing(root / "one") if path not in KNOWN}
        if strays:
            tally.failed(f"files that nobody should have written: {sorted(strays)}")
    return tally


KNOWN = {CONFIG_NAME, TENSORS, BIN, "one.safetensors", "c.safetensors", "state.bin"}

_PROMISE = (
    "returns or raises our errors, within {} s of computing and {} MiB; nothing is written, no code is run"
)


def _campaign(name: str, full: int, found: tuple[str, ...] = ()) -> Campaign:
    what = (getattr(Fuzz, name).__doc__ or "").partition(":")[0].rstrip(".").replace("``", "`")
    promise = f"{what}: {_PROMISE.format(int(SECONDS), int(MEBIBYTES))}"
    return Campaign(name.replace("_", "-"), promise, lambda cases: run(name, cases), full, full // 100, found)


CAMPAIGNS = (
    _campaign(
        "configuration",
        36_000,
        (
            "a regular expression such as `(a+)+$` in `rank_pattern` or `target_modules` never ended: now "
            "matched in bounded time (`tntune.checkpoint.expression`)",
            "a layer leg of size 2³¹ in a shared map was planned for hours: now refused before it is made",
            "`r` of 400 digits was an OverflowError: now refused",
            "a map of 2⁶⁴ features was a TypeError of torch in `load_adapters`: now refused",
            "a configuration that is a device or a pipe was read without end: now refused",
        ),
    ),
    _campaign("header", 26_000),
    _campaign("single_file", 24_000),
    _campaign(
        "calibration",
        12_000,
        (
            "deeply nested metadata was a RecursionError: now refused",
            "moments of integers or complex numbers were read: now refused",
        ),
    ),
    _campaign(
        "pickled",
        4_000,
        (
            "a nested tensor was a RuntimeError: now refused",
            "one number expanded to 2⁴⁰ entries, or a tensor on no device, was opened: now refused",
        ),
    ),
    _campaign(
        "command",
        2_000,
        (
            "names with control characters went to the terminal as they are: now spelled out",
            "a character that stdout's encoding lacks was a traceback: now spelled out",
        ),
    ),
)
