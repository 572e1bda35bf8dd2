"""Exact identities: the paper's formula, what a latent does and does not add, and what ranks bound."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.dense_maps import concat_factors, entries, joined_factors
from tests.support.maps import MAPS, concat, joined, tensors_of, tt_lora
from tests.support.oracles import spectra_of
from tests.support.tolerance import close
from tntune.maps import Factors, Geometry, Joined, Latent, LatentTrain, TensorGuide
from tntune.tt import dense

DOTS = {"modes": (16, 8, 257, 16), "ranks": (1, 2, 2, 1, 1)}
CONCATS = [name for name, map in MAPS.items() if name.startswith("concat") and "mean" not in name]
JOINED = [name for name in MAPS if name.startswith("joined") and "mean" not in name]


def cores_of(params: dict[str, Tensor], prefix: str = "tt_core") -> list[np.ndarray]:
    return [tensor.numpy() for name, tensor in params.items() if name.startswith(prefix)]


def latent_of(fixed: dict[str, Tensor], name: str = "tt_latent") -> np.ndarray | None:
    return fixed[name].numpy() if name in fixed else None


def agree(found: Factors, down: np.ndarray, up: np.ndarray) -> bool:
    wanted = (torch.from_numpy(down), torch.from_numpy(up))
    return all(close(a, b.reshape(a.shape)) for a, b in zip(found, wanted, strict=True))


# The formula.


@pytest.mark.parametrize("name", CONCATS)
def test_concat_is_the_papers_formula(name: str) -> None:
    map = MAPS[name]
    params, fixed = tensors_of(map)
    w = entries(cores_of(params), latent_of(fixed))
    down, up = concat_factors(w, map.in_features, map.out_features, map.width)
    if map.subtracts_start:
        start = entries(cores_of(fixed, "tt_start"), latent_of(fixed))
        up = up - concat_factors(start, map.in_features, map.out_features, map.width)[1]
    assert agree(map.factors(params, fixed), down, up)


@pytest.mark.parametrize("name", JOINED)
def test_joined_is_the_named_entry(name: str) -> None:
    map = MAPS[name]
    params, fixed = tensors_of(map)
    sizes = (map.in_features, map.out_features, map.width)
    w = entries(cores_of(params), latent_of(fixed))
    down, up = joined_factors(w, map.layout.pattern, map.layout.sizes, *sizes)
    if map.subtracts_start:
        start = entries(cores_of(fixed, "tt_start"), latent_of(fixed))
        up = up - joined_factors(start, map.layout.pattern, map.layout.sizes, *sizes)[1]
    assert agree(map.factors(params, fixed), down, up)


@pytest.mark.parametrize("latent", ["none", "fixed"])
def test_tt_lora_is_two_independent_trains(latent: str) -> None:
    map = tt_lora(latent=latent)
    params, fixed = tensors_of(map)
    first = entries(cores_of(params, "tt_down"), latent_of(fixed, "tt_down_latent"))
    second = entries(cores_of(params, "tt_up"), latent_of(fixed, "tt_up_latent"))
    assert agree(map.factors(params, fixed), first.reshape(6, 2).T, second.reshape(2, 4).T)


def test_tensorly_reads_the_same_train() -> None:
    map = concat(latent="fixed", start="random", ranks=(2, 2, 3, 2, 2))
    params, fixed = tensors_of(map)
    matrix = map.train.tensor_train(list(params.values()))  # a TTMatrix (latent, open)
    w = fixed["tt_latent"].double().flatten() @ dense(matrix)
    assert close(w.reshape(map.train.modes), torch.from_numpy(entries(cores_of(params), latent_of(fixed))))
    plain = concat(start="random")
    params, _ = tensors_of(plain)
    assert close(
        dense(plain.train.tensor_train(list(params.values()))), torch.from_numpy(entries(cores_of(params)))
    )


# What the latent adds.


def test_a_latent_of_the_published_shape_is_a_plain_train() -> None:
    """Latent (1, 2, 2, 1) at ranks (1, 2, 2, 1, 1) is the plain train of ranks (1, 2, 4, 1, 1), as large."""
    guide = TensorGuide.concat(512, 2, 1024, **DOTS, latent=Latent("fixed", (1, 2, 2, 1)), start="random")
    plain = TensorGuide.concat(512, 2, 1024, modes=DOTS["modes"], ranks=(1, 2, 4, 1, 1), start="random")
    assert guide.num_parameters == plain.num_parameters == 1140
    params, fixed = tensors_of(guide)
    first, second, third, fourth = params.values()
    z = fixed["tt_latent"].double().reshape(2, 2)
    absorbed = {
        "tt_core_0": first[:, 0],
        "tt_core_1": second.permute(0, 2, 3, 1).flatten(2),  # (r, m, (r', n))
        "tt_core_2": torch.einsum("ij,ajmb->aimb", z, third).flatten(0, 1),  # ((r, n), m, r')
        "tt_core_3": fourth[:, 0],
    }
    assert all(
        close(a, b) for a, b in zip(guide.factors(params, fixed), plain.factors(absorbed, {}), strict=True)
    )


@pytest.mark.parametrize(
    ("modes", "ranks", "latent"),
    [
        ((5, 4, 7, 5), (1, 2, 2, 1, 1), (1, 2, 2, 1)),
        ((5, 4, 7, 5), (1, 1, 2, 2, 1), (1, 2, 2, 1)),
        ((5, 4, 7, 5), (1, 1, 2, 1, 1), (1, 2, 2, 1)),
        ((1, 5, 6, 6, 5), (1, 3, 4, 4, 2, 1), (2, 2, 2, 2, 2)),
        ((3, 4, 5), (1, 2, 2, 1), (3, 1, 2)),
        ((3, 4, 5), (2, 2, 3, 2), (1, 1, 1)),
    ],
)
def test_rank_lift(modes: tuple[int, ...], ranks: tuple[int, ...], latent: tuple[int, ...]) -> None:
    """TT-rank k of w is min(r_k rho_k, cap_k) for generic cores and latent: rho_k is z's own rank there."""
    train = LatentTrain(modes, ranks, Latent("fixed", latent))
    generator = torch.Generator().manual_seed(0)
    cores = [torch.randn(s, generator=generator, dtype=torch.float64) for s in train.core_shapes]
    z = train.latent.draw().double().numpy()
    w = entries([core.numpy() for core in cores], z)
    for k, (found, lifts) in enumerate(zip(spectra_of(w), spectra_of(z), strict=True), 1):
        cap = min(int(np.prod(modes[:k])), int(np.prod(modes[k:])))
        assert rank_of(found) == min(ranks[k] * rank_of(lifts), cap)


def test_boundary_ranks_are_summed() -> None:
    """Ranks (2, .., 2) are ranks (1, .., 1) with the end cores summed over the boundary."""
    wide = concat(latent="fixed", start="random", ranks=(2, 2, 3, 2, 2))
    params, fixed = tensors_of(wide)
    narrow = concat(latent="fixed", start="random", ranks=(1, 2, 3, 2, 1))
    summed = {
        **params,
        "tt_core_0": params["tt_core_0"].sum(0, keepdim=True),
        "tt_core_3": params["tt_core_3"].sum(-1, keepdim=True),
    }
    pairs = zip(wide.factors(params, fixed), narrow.factors(summed, fixed), strict=True)
    assert all(close(a, b) for a, b in pairs)


MEANS = [concat, lambda **kind: joined("side f w", (3, 5, 2), **kind), lambda **kind: joined("io w", **kind)]


@pytest.mark.parametrize("make", MEANS)
def test_mean_is_the_sum_over_the_latent_basis(make: object) -> None:
    """E_z[up(z) down(z)] = Σ_n up(e_n) down(e_n), since E[z_n z_m] is the identity."""
    mean = make(latent="mean", start="random")
    fixed_z = make(latent="fixed", start="random")
    params, _ = tensors_of(mean)
    total = torch.zeros(mean.delta(params, {}).shape, dtype=torch.float64)
    for index in product(*(range(n) for n in mean.latent.modes)):
        basis = torch.zeros(mean.latent.modes, dtype=torch.float64)
        basis[index] = 1
        total += fixed_z.delta(params, {"tt_latent": basis})
    assert close(mean.delta(params, {}), total)


@pytest.mark.parametrize("make", MEANS)
def test_mean_is_the_average_over_an_orthogonal_design(make: object) -> None:
    """Σ over the rows of any orthogonal matrix gives the same: only the second moment of z matters."""
    mean, fixed_z = make(latent="mean", start="random"), make(latent="fixed", start="random")
    params, _ = tensors_of(mean)
    rotation, _ = torch.linalg.qr(
        torch.randn(2 * [mean.latent.size], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    )
    deltas = [fixed_z.delta(params, {"tt_latent": row.reshape(mean.latent.modes)}) for row in rotation]
    assert close(mean.delta(params, {}), sum(deltas))


# LoRA inside, ranks, gauge.


@pytest.mark.parametrize("sizes", [(5, 5, 2), (7, 3, 3)])
def test_joined_with_an_identity_width_core_is_lora(sizes: tuple[int, int, int]) -> None:
    """K = 2, bond = M and a width core of I: the cores are the factors of a LoRA."""
    d, q, width = sizes
    layout = Joined.auto("(side f) w", Geometry(*sizes))
    guide = TensorGuide(d, q, width, layout, (1, width, 1), start="random")
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(width, d, dtype=torch.float64, generator=generator)
    up = torch.randn(q, width, dtype=torch.float64, generator=generator)
    features = torch.zeros(2, max(d, q), width, dtype=torch.float64)
    features[0, :d], features[1, :q] = down.T, up
    params = {"tt_core_0": features.flatten(0, 1)[None], "tt_core_1": torch.eye(width).double()[:, :, None]}
    assert all(torch.equal(a[0], b) for a, b in zip(guide.factors(params, {}), (down, up), strict=True))


@pytest.mark.parametrize(
    ("pattern", "bond"), [("side f1 f2 w", 3), ("w side f", 1), ("io w", 2), ("(side f1) f2 (w1 w2)", 2)]
)
def test_the_bond_between_features_and_width_bounds_the_rank(pattern: str, bond: int) -> None:
    """S = G_w G_w^T of size bond sits between the factors: rank(ΔW) = min(M, bond) for generic cores."""
    layout = Joined.auto(pattern, Geometry(9, 8, 4))
    order = len(layout.modes)
    ranks = [1, *[4] * (order - 1), 1]
    ranks[1 if pattern.startswith("w") else order - 1] = bond
    guide = TensorGuide(9, 8, 4, layout, tuple(ranks), start="random")
    delta = guide.delta(*tensors_of(guide))[0]
    assert rank_of(torch.linalg.svdvals(delta).numpy()) == bond


@pytest.mark.parametrize(
    "name", ["concat fixed", "concat random", "joined digits", "joined mean", "joined layers"]
)
def test_gauge_changes_nothing(name: str) -> None:
    """G and its inverse on each bond: another point of the gauge orbit, the same factors."""
    map = MAPS[name]
    params, fixed = tensors_of(map)
    cores = list(params.values())
    generator = torch.Generator().manual_seed(2)
    for k in range(len(cores) - 1):
        rank = cores[k].shape[-1]
        gauge = torch.eye(rank).double() + 0.3 * torch.randn(
            rank, rank, dtype=torch.float64, generator=generator
        )
        cores[k] = cores[k] @ gauge
        cores[k + 1] = torch.tensordot(torch.linalg.inv(gauge), cores[k + 1], dims=1)
    turned = dict(zip(params, cores, strict=True))
    assert not torch.allclose(turned["tt_core_0"], params["tt_core_0"])
    pairs = zip(map.factors(turned, fixed), map.factors(params, fixed), strict=True)
    assert all(close(a, b) for a, b in pairs)


# The start.


@pytest.mark.parametrize("name", ["concat random", "joined digits", "joined io", "joined layers"])
def test_a_zeroed_core_of_a_joint_generator_is_a_dead_start(name: str) -> None:
    """Both factors come from every core: with one zero, ΔW and all of its gradients are exactly zero."""
    map = MAPS[name]
    params, fixed = tensors_of(map)
    for silenced in params:
        leaves = {
            key: (torch.zeros_like(core) if key == silenced else core).clone().requires_grad_()
            for key, core in params.items()
        }
        delta = map.delta(leaves, fixed)
        found = torch.autograd.grad((delta * torch.ones_like(delta)).sum(), list(leaves.values()))
        assert not any(bool(gradient.any()) for gradient in (delta, *found))


@pytest.mark.parametrize("latent", ["none", "fixed", "resample", "mean"])
@pytest.mark.parametrize("ranks", [(1, 2, 3, 2, 1), (2, 5, 1, 4, 3)])
def test_entries_of_the_start_have_the_stated_variance(latent: str, ranks: tuple[int, ...]) -> None:
    """E w² = Σ z² · Π r_k · v^K for independent core entries of variance v: v is solved for, and measured."""
    train = concat(latent=latent, ranks=ranks).train
    drawn = [
        c.flatten() for s in range(200) for c in train.init_cores("random", 0.3, seeded(s), torch.float64)
    ]
    power = {"none": 1.0, "mean": 1.0, "resample": 12.0, "fixed": float(train.latent.draw().square().sum())}
    variance = (0.3 / (power[latent] * np.prod(ranks))) ** (1 / 4)
    assert abs(torch.cat(drawn).square().mean() / variance - 1) < 0.05


def test_the_start_of_down_has_loras_variance_in_the_mean() -> None:
    """Over 2000 starts, entries of down have the mean square 1 / (3 D), and LoRA's the same."""
    guide, lora = joined("side f1 f2 w", (6, 6, 2), latent="fixed"), MAPS["lora"]
    square = torch.stack([guide.factors(*guide.init(seeded(s))).down for s in range(2000)]).square().mean()
    assert abs(square * 3 * 6 - 1) < 0.15
    square = torch.stack([lora.init(seeded(s))[0]["lora_down"] for s in range(2000)]).square().mean()
    assert abs(square * 3 * 5 - 1) < 0.05


def test_published_and_paper_starts() -> None:
    train = LatentTrain((30, 40), (1, 5, 1), Latent("fixed", (3, 2)))
    published = train.init_cores("published", 1.0, seeded(0), torch.float64)
    assert abs(published[1].std() / 0.1 - 1) < 0.1
    for core, bound in zip(
        train.init_cores("paper", 1.0, seeded(0), torch.float64), (6 / (3 + 150), 6 / (10 + 40)), strict=True
    ):
        assert core.abs().max() <= bound**0.5
        assert abs(core.square().mean() / (bound / 3) - 1) < 0.2


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rank_of(spectrum: np.ndarray) -> int:
    return int((spectrum > 1e-9 * spectrum[0]).sum())
