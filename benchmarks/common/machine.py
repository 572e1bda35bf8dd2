"""What a machine can do at best: the floor that stands beside a time."""

from dataclasses import dataclass

import torch

from common.turns import cpu_seconds

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Machine:
    """Measured peaks of the threads that torch has.

    Attributes:
        flops: Multiplications and additions a second, of a large float32 product.
        bytes: Bytes a second that a copy reads and writes.
    """

    flops: float
    bytes: float

    @classmethod
    def measured(cls) -> "Machine":
        """The best of some runs of a product of 1024 x 1024 matrices and of a copy of 128 MB."""
        a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
        large = torch.randn(2**25)
        copy = torch.empty_like(large)
        threads = torch.get_num_threads()
        product = min(cpu_seconds(lambda: torch.mm(a, b), 3) for _ in range(8)) / threads
        copied = min(cpu_seconds(lambda: copy.copy_(large)) for _ in range(6)) / threads
        return cls(2 * 1024**3 / product, 2 * FLOAT * large.numel() / copied)

    def floor(self, flops: float, entries: float) -> float:
        """Seconds below which no work of so many flops and float32 entries read or written can be."""
        return max(flops / self.flops, FLOAT * entries / self.bytes)

    def __str__(self) -> str:
        """Both peaks in words."""
        return f"{self.flops / 1e9:.0f} GFLOP/s in a product, {self.bytes / 1e9:.0f} GB/s in a copy"
