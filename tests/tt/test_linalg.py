"""QR and SVD reproduce their matrix with orthonormal factors, long float32 matrices included."""

import pytest
import scipy.linalg
import torch
from torch import Tensor

from tests.support.tolerance import close
from tntune.errors import NumericalError
from tntune.tt import linalg
from tntune.tt.linalg import r_factor, safe_svd, thin_qr

SHAPES = [(3, 3), (7, 2), (2, 7), (700, 5), (5, 700), (9000, 6), (20000, 40)]
DTYPES = [torch.float64, torch.float32, torch.complex128, torch.complex64]


def drawn(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def unit(columns: Tensor) -> bool:
    return close(columns.mH @ columns, torch.eye(columns.shape[1], dtype=columns.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_qr(shape: tuple[int, int], dtype: torch.dtype) -> None:
    m = drawn(shape, dtype)
    q, r = thin_qr(m)
    assert q.shape[1] == r.shape[0] == min(shape)
    assert close(q @ r, m)
    assert unit(q)
    assert torch.equal(r, r.triu())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_r_factor_has_the_gram_matrix(shape: tuple[int, int], dtype: torch.dtype) -> None:
    m = drawn(shape, dtype)
    r = r_factor(m)
    assert r.shape == (min(shape), shape[1])
    assert close(r.mH @ r, m.mH @ m)
    assert close(r_factor(m.mT.contiguous().mT).abs(), r.abs())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_svd(shape: tuple[int, int], dtype: torch.dtype) -> None:
    m = drawn(shape, dtype)
    u, s, vh = safe_svd(m)
    assert close((u * s) @ vh, m)
    assert unit(u)
    assert unit(vh.mH)
    assert bool((s.diff() <= 0).all())
    assert not s.is_complex()


def test_rank_deficient_matrices_have_orthonormal_factors_too() -> None:
    m = torch.zeros(9000, 4, dtype=torch.float64)
    m[5] = 1.0
    q, r = thin_qr(m)
    assert unit(q)
    assert close(q @ r, m)
    u, s, _ = safe_svd(m)
    assert unit(u)
    assert close(s, torch.tensor([2.0, 0, 0, 0], dtype=torch.float64))


@pytest.mark.parametrize("rows", [2**18, pytest.param(2**22, marks=pytest.mark.slow)], ids=["2^18", "2^22"])
def test_long_float32_matrices_keep_float32_accuracy(rows: int) -> None:
    m = drawn((rows, 4), torch.float32)
    reference = torch.linalg.svdvals(r_factor(m.double()))
    assert close(torch.linalg.svdvals(r_factor(m)), reference, factor=0.02)
    u, s, vh = safe_svd(m)
    assert close(s, reference, factor=0.02)
    assert close((u * s) @ vh, m, factor=0.02)
    assert close(safe_svd(m.mT)[1], reference, factor=0.02)


@pytest.mark.parametrize("scale", [1.0, 1e-170, 1e170])
def test_r_factor_keeps_small_singular_values(scale: float) -> None:
    expected = torch.logspace(0, -15, 16, dtype=torch.float64)
    left, _ = thin_qr(drawn((5000, 16), torch.float64))
    right, _ = thin_qr(drawn((16, 16), torch.float64))
    found = torch.linalg.svdvals(r_factor((left * expected * scale) @ right)) / scale
    assert close(found, expected, factor=1e-4)
    assert close((found / expected)[:11].float(), torch.ones(11))


@pytest.mark.parametrize("dtype", DTYPES)
def test_r_factor_of_zeros(dtype: torch.dtype) -> None:
    assert not r_factor(torch.zeros(100, 3, dtype=dtype)).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_r_factor_of_entries_that_are_not_finite(value: float) -> None:
    m = torch.ones(100, 3)
    m[70, 1] = value
    with pytest.raises(NumericalError, match=r"shape \(100, 3\) has entries that are not finite"):
        r_factor(m)


@pytest.mark.parametrize("rows", [12, 13, 100, 1000])
def test_trees_of_any_depth(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(linalg, "_QR_ROWS", 1)
    m = drawn((rows, 3), torch.complex128)
    q, r = thin_qr(m)
    assert close(q @ r, m)
    assert unit(q)
    assert close(r_factor(m).abs(), r.abs())


def test_qr_is_differentiable_in_a_tree() -> None:
    def product(m: Tensor) -> Tensor:
        q, r = thin_qr(m)
        return (q @ r)[::500]

    m = drawn((4500, 2), torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(product(m).sum(), m)
    expected = torch.zeros_like(m)
    expected[::500] = 1
    assert close(gradient, expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_entries_that_are_not_finite_are_refused(value: float) -> None:
    m = torch.ones(4, 3)
    m[2, 1] = value
    with pytest.raises(NumericalError, match=r"shape \(4, 3\) has entries that are not finite"):
        safe_svd(m)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sure_driver_takes_over(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    def fails(*_: object, **__: object) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    m = drawn((6, 4), dtype)
    expected = torch.linalg.svdvals(m)
    monkeypatch.setattr(torch.linalg, "svd", fails)
    u, s, vh = safe_svd(m)
    assert {u.dtype, vh.dtype} == {dtype}
    assert close(s, expected)
    assert close((u * s) @ vh, m)


def test_a_silent_failure_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def swallows(m: Tensor, **_: object) -> tuple[Tensor, Tensor, Tensor]:
        return m, m.new_full((2,), float("nan")), m

    monkeypatch.setattr(torch.linalg, "svd", swallows)
    _, s, _ = safe_svd(torch.eye(2))
    assert close(s, torch.ones(2))


def test_no_driver_converging_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise scipy.linalg.LinAlgError("did not converge")

    def fails_in_torch(*_: object, **__: object) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "svd", fails_in_torch)
    monkeypatch.setattr(scipy.linalg, "svd", fails)
    with pytest.raises(NumericalError, match=r"no SVD of a matrix of shape \(2, 2\) converged"):
        safe_svd(torch.eye(2))
