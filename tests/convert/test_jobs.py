"""Laws of several processes: the results of one, its errors, and nothing left behind when one dies."""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing import active_children, current_process
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.checkpoint import lora_files
from tests.convert.library import member
from tests.convert.sample import factors, listing, lora_folder
from tests.convert.shared import Network, batches, shared_folder
from tntune.checkpoint import open_lora
from tntune.convert import (
    CollectionSettings,
    ConversionSettings,
    ResizeSettings,
    Target,
    Task,
    calibrate,
    conversion_memory,
    convert_collection,
    convert_lora,
    export_lora,
    resize_lora,
    resize_memory,
    sweep_lora,
)
from tntune.convert.jobs import Jobs
from tntune.errors import NumericalError, SpecError, WorkerError

RUNNING = """
import signal, sys
from pathlib import Path
from tntune.convert import ConversionSettings, Target, convert_lora
def progress(stage, done, total):
    sys.stdout.write(f"{stage} {done}\\n")
    sys.stdout.flush()
    sys.stdin.readline()
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
    source, output = map(Path, sys.argv[1:3])
    settings = ConversionSettings(Target(params=0.5), jobs=2)
    try:
        convert_lora(source, output, settings, progress=progress)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@dataclass(frozen=True)
class Scaled:
    """Work that remembers what it was made with, and that is slow for even numbers."""

    factor: int

    def __call__(self, number: int) -> tuple[int, str]:
        time.sleep(0.01 * (1 - number % 2))
        return self.factor * number, current_process().name


def inverse(number: int) -> float:
    if number == 3:
        raise NumericalError("3 has no inverse here")
    return 1 / number


def gone(number: int) -> int:
    if number == 2:
        os._exit(0)
    return number


def killed(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@dataclass(frozen=True)
class Half:
    """Work on tensors: what is cut from a larger one arrives alone."""

    def __call__(self, value: Tensor) -> Tensor:
        return value[: len(value) // 2]


def test_results_come_in_the_order_of_the_items_from_several_processes() -> None:
    with Jobs(2) as jobs:
        first = list(jobs.map(Scaled(3), range(12)))
        second = list(jobs.map(Scaled(5), range(5)))
        assert len(active_children()) == 2
        halves = list(jobs.map(Half(), [torch.arange(6.0), torch.ones(2, 3).bfloat16()]))
        assert list(jobs.map(math.sqrt, [])) == []
    assert [value for value, _ in first] == [3 * number for number in range(12)]
    assert [value for value, _ in second] == [5 * number for number in range(5)]
    names = {name for _, name in first}
    assert len(names) == 2
    assert current_process().name not in names
    assert torch.equal(halves[0], torch.arange(3.0))
    assert torch.equal(halves[1], torch.ones(1, 3).bfloat16())
    assert active_children() == []


def test_one_job_is_this_process() -> None:
    with Jobs(1) as jobs:
        assert list(jobs.map(Scaled(2), [4])) == [(8, current_process().name)]
        assert active_children() == []


def threads(_: int) -> int:
    return torch.get_num_threads()


@pytest.mark.parametrize(("own", "each"), [(1, 1), (2, 1), (5, 2)])
def test_processes_share_out_the_threads(own: int, each: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(own)
    try:
        with Jobs(2) as jobs:
            assert list(jobs.map(threads, range(4))) == [each] * 4
    finally:
        torch.set_num_threads(before)


def test_errors_are_those_of_one_process() -> None:
    with Jobs(2) as jobs, pytest.raises(NumericalError, match=r"^3 has no inverse here$"):
        list(jobs.map(inverse, [3, 0, 2]))
    with Jobs(2) as jobs, pytest.raises(WorkerError, match=r"(?s)a worker failed:.*ZeroDivisionError"):
        list(jobs.map(inverse, [1, 0, 3]))
    assert active_children() == []


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")
def test_a_killed_worker_is_an_error() -> None:
    with Jobs(2) as jobs, pytest.raises(WorkerError, match=r"ended by signal 9 .* nothing was written"):
        list(jobs.map(killed, range(6)))
    assert active_children() == []


def test_a_worker_that_leaves_is_an_error() -> None:
    with (
        Jobs(2) as jobs,
        pytest.raises(WorkerError, match=r"ended with exit code 0 before its work was done"),
    ):
        list(jobs.map(gone, range(6)))
    assert active_children() == []


def test_the_number_of_jobs_is_positive() -> None:
    for make in (Jobs, lambda jobs: ConversionSettings(Target(params=0.5), jobs=jobs)):
        with pytest.raises(SpecError, match="jobs must be at least 1, not 0"):
            make(0)
    with pytest.raises(SpecError, match="jobs must be at least 1, not -1"):
        ResizeSettings(rank=1, jobs=-1)


def test_conversion_writes_the_same_bytes(tmp_path: Path) -> None:
    source = lora_folder(tmp_path / "lora", dtype=torch.bfloat16, saved=True)
    made, seen = {}, []
    for jobs in (1, 2):
        output = tmp_path / f"{jobs}" / "out"
        output.parent.mkdir()
        settings = ConversionSettings(Target(params=0.4), "auto", jobs=jobs)
        report = convert_lora(source, output, settings, progress=lambda *each: seen.append(each))
        made[jobs] = (report.layers, report.relative_error, listing(output))
    assert made[1] == made[2]
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]


def test_resizing_writes_the_same_bytes(tmp_path: Path) -> None:
    source = tmp_path / "one.safetensors"
    lora_files.lora_file(source, lora_files.tensors("kohya unet", lora_files.ALPHAS["one alpha"]))
    one, two = (
        resize_lora(source, tmp_path / f"{jobs}.safetensors", ResizeSettings(energy=0.9, jobs=jobs))
        for jobs in (1, 2)
    )
    assert one.layers == two.layers
    assert Path(one.output).read_bytes() == Path(two.output).read_bytes()


def test_members_of_a_library_are_exported_by_several_processes(tmp_path: Path) -> None:
    sources = {name: member(tmp_path / name, seed) for seed, name in enumerate(("a", "b"))}
    convert_collection(sources, tmp_path / "library", CollectionSettings(Target(params=0.6)))
    for jobs in (1, 2):
        export_lora(tmp_path / "library", tmp_path / f"{jobs}", member="b", jobs=jobs)
    assert listing(tmp_path / "1") == listing(tmp_path / "2")


def test_errors_of_layers_name_them_and_leave_nothing(tmp_path: Path) -> None:
    made = factors()
    made["h.0.proj"] = (made["h.0.proj"][0] * math.nan, made["h.0.proj"][1])
    source = lora_folder(tmp_path / "lora", made=made)
    found = []
    for jobs in (1, 2):
        with pytest.raises(NumericalError, match=r"h\.0\.proj") as error:
            convert_lora(source, tmp_path / "out", ConversionSettings(Target(params=0.5), jobs=jobs))
        found.append(str(error.value))
    assert found[0] == found[1]
    assert not (tmp_path / "out").exists()


def test_layers_that_are_converted_together_are_not_shared_out(tmp_path: Path) -> None:
    source, refusal = shared_folder(tmp_path / "lora"), "in one process, not 2"
    joint = ConversionSettings(Target(params=0.5), "joint", jobs=2)
    auto = ConversionSettings(Target(params=0.5), "auto", jobs=2)
    known = calibrate(Network(), batches(), source)
    with pytest.raises(SpecError, match=refusal):
        convert_lora(source, tmp_path / "out", joint)
    with pytest.raises(SpecError, match=refusal):
        convert_lora(source, tmp_path / "out", auto, task=Task(known))
    with pytest.raises(SpecError, match=refusal):
        sweep_lora(source, tmp_path / "out", [auto])
    with pytest.raises(SpecError, match=refusal):
        conversion_memory(open_lora(source), joint)
    with pytest.raises(SpecError, match=refusal):
        conversion_memory(open_lora(source), auto, calibration=known)
    assert not (tmp_path / "out").exists()


def test_the_stated_memory_counts_each_process(tmp_path: Path) -> None:
    opened = open_lora(lora_folder(tmp_path / "lora"))
    for stated in (
        [conversion_memory(opened, ConversionSettings(Target(params=0.5), jobs=n)) for n in (1, 2, 3, 4)],
        [resize_memory(opened, ResizeSettings(params=0.5, jobs=n)) for n in (1, 2, 3, 4)],
    ):
        one, two, three, four = stated
        assert four - three == three - two > 2**28  # a process with its libraries
        assert two - one > three - two  # the first process of its own comes beside this one


@pytest.mark.skipif(sys.platform != "linux", reason="finds children in /proc and sends signals")
@pytest.mark.parametrize(
    "end",
    ["interrupted", *(pytest.param(end, marks=pytest.mark.slow) for end in ("worker killed", "killed"))],
)
def test_what_ends_halfway_leaves_nothing(tmp_path: Path, end: str) -> None:
    script, output = tmp_path / "run.py", tmp_path / "out"
    script.write_text(RUNNING)
    source = lora_folder(tmp_path / "lora")
    process = subprocess.Popen(
        [sys.executable, str(script), str(source), str(output)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "survey 1\n"
    workers = children(process.pid)
    assert len(workers) >= 2
    if end == "interrupted":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    elif end == "killed":
        process.kill()
    else:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        process.stdin.write("\n" * 9)
        process.stdin.flush()
    _, message = process.communicate(timeout=300)
    assert process.returncode == {"interrupted": 130, "killed": -9, "worker killed": 1}[end]
    if end == "worker killed":
        assert "WorkerError: a worker process was ended by signal 9" in message
    for _ in range(600):
        if not any(alive(worker) for worker in workers):
            break
        time.sleep(0.1)
    assert not any(alive(worker) for worker in workers)
    assert {path.name for path in tmp_path.iterdir()} == {"run.py", "lora"}


def children(process: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process:
            found.append(int(path.parent.name))
    return found


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended but that nobody has asked after does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
