"""Do the structured kernels agree with kernels from the whole Jacobian, and the operator with both?

    python theory/verify/ntk.py

N1: Grams of sums of outer products. N2: through aligned trains. N3: whole models by vmap. N4: the operator.
E23: the order of the factors. Float64; the error is relative to the largest entry.
"""

import torch
from torch import Tensor, nn

from tntune.adapters import adapt
from tntune.maps import ACTIVATIONS, Geometry, Joined, Latent, LoRA, Site, TensorGuide, WeightMap, build_map
from tntune.theory import layer_ntk, logits, ntk, ntk_operator

SIZES = Geometry(24, 10, 8)
INPUTS = 12


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def maps() -> dict[str, tuple[str, WeightMap]]:
    """Maps by the route they take."""
    joined = {
        pattern: TensorGuide(*SIZES, layout, (1, *[3] * (len(layout.modes) - 1), 1), start="random")
        for pattern in ("side f1 f2 w", "w1 w2 io1 io2", "(f1 w1) (f2 w2) side")
        for layout in [Joined.auto(pattern, SIZES)]
    }
    latent = TensorGuide.concat(
        *SIZES, modes=(4, 4, 17), ranks=(1, 3, 3, 1), latent=Latent("fixed", (1, 2, 2)), start="paper"
    )
    tt_lora = build_map("tt_lora", SIZES, rank=3, start="random")
    return (
        {"LoRA": ("N1", LoRA(*SIZES, "random")), "TT-LoRA": ("N2", tt_lora)}
        | {f"TensorGuide {name}": ("N1" if "(" in name else "N2", map) for name, map in joined.items()}
        | {"TensorGuide concat, latent": ("N1", latent)}
    )


def jacobian(map: WeightMap, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    """A (n C, P) by reverse mode through everything."""

    def outputs(own: dict[str, Tensor]) -> Tensor:
        down, up = map.factors(own, tensors)
        return ACTIVATIONS["gelu"].function(x @ down[0].mT) @ up[0].mT

    params = {name: tensors[name] for name in map.param_shapes}
    parts = torch.func.jacrev(outputs)(params).values()
    return torch.cat([part.flatten(2).flatten(0, 1) for part in parts], dim=1)


def error(found: Tensor, wanted: Tensor) -> str:
    return f"{float((found - wanted).abs().max() / wanted.abs().max()):.1e}"


def layers() -> None:
    x = normal(INPUTS, SIZES.in_features, seed=0)
    for name, (label, map) in maps().items():
        params, fixed = map.init(torch.Generator().manual_seed(1), dtype=torch.float64)
        tensors = {**params, **fixed}
        a = jacobian(map, tensors, x)
        found = layer_ntk(Site(map, activation="gelu"), tensors, x)
        print(f"| {label} | {name} | {found.route} | {a.shape[1]:,} | {error(found.values, a @ a.T)} |")
        ordered = product(map, params, fixed, x)
        print(f"| E23 | {name} | G J Jᵀ Gᵀ | {a.shape[1]:,} | {error(found.values, ordered)} |")


def product(map: WeightMap, params: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor) -> Tensor:
    """``G J Jᵀ Gᵀ`` with G by the factors and J of the factors by the params, each written out."""
    down, up = map.factors(params, fixed)
    parts = torch.func.jacrev(lambda own: torch.cat([f.flatten() for f in map.factors(own, fixed)]))(params)
    j = torch.cat([part.flatten(1) for part in parts.values()], dim=1)
    g = jacobian(LoRA(*SIZES), {"lora_down": down[0], "lora_up": up[0]}, x)
    return g @ j @ j.T @ g.T


def models() -> None:
    model = nn.Sequential(nn.Linear(24, 10), nn.Tanh(), nn.Linear(10, 4))
    site = Site(build_map("tensorguide", SIZES, rank=3, start="random"), activation="gelu")
    adapt(model, {"0": site}, generator=torch.Generator().manual_seed(0))
    model.double().eval()
    x = normal(INPUTS, SIZES.in_features, seed=0)
    own = [param for param in model.parameters() if param.requires_grad]
    grads = [torch.autograd.grad(entry, own, retain_graph=True) for entry in model(x).flatten()]
    a = torch.stack([torch.cat([g.flatten() for g in grad]) for grad in grads])
    found, name = ntk(model, x, logits), "network with a TensorGuide"
    print(f"| N3 | {name} | {found.route} | {a.shape[1]:,} | {error(found.values, a @ a.T)} |")
    eye = torch.eye(len(a), dtype=torch.float64).numpy()
    whole = torch.from_numpy(ntk_operator(model, x, logits) @ eye)
    print(f"| N4 | {name} | operator | {a.shape[1]:,} | {error(whole, a @ a.T)} |")


def main() -> None:
    print("| label | map | route | P | error |\n|---|---|---|---|---|")
    layers()
    models()


if __name__ == "__main__":
    main()
