"""Why a table can say that a small GPT-2 has a perplexity of 1.6: three readings of the same model.

Run it with ``python examples/06_perplexity.py``; it takes two minutes on two cores, the first time (a small
model is trained and kept). Lines of text are padded to one length, as fine-tuning scripts do, and the output
matrix is adapted on them, as in the TensorGuide paper, with the pads scored, and without.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import AdamW

from tntune.adapters import AdapterSpec, adapt
from tntune.experiments.gpt2 import Base, Size, gpt2, own_base
from tntune.experiments.perplexity import diluted_perplexity, misread_perplexities, text_share, token_losses
from tntune.experiments.pretrained import default_cache
from tntune.experiments.text import docstrings, package_files, split_texts, wikitext

SIZE = Size(4, 128, 4, 1024, 64, 800)
READINGS = ("right", "padding scored", "labels not shifted")
PRINTED = 1.6  # in the paper, to which the readings are compared


def lines_of(text: str) -> list[str]:
    """Lines that say something."""
    return [line for line in text.splitlines() if line.strip()]


def padded(lines: list[str], base: Base) -> tuple[Tensor, Tensor]:
    """Tokens and mask of lines in rows of one length, as long as the model reads."""
    length = base.config.n_positions
    tokens, mask = torch.zeros(len(lines), length, dtype=torch.long), torch.zeros(len(lines), length)
    for row, encoding in enumerate(base.tokenizer.encode_batch(lines)):
        ids = torch.tensor(encoding.ids[:length])
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, 1
    kept = mask.sum(1) > 1
    return tokens[kept], mask[kept].bool()


def trained(base: Base, rows: tuple[Tensor, Tensor], *, score_padding: bool, steps: int) -> torch.nn.Module:
    """The base with its output matrix adapted, by a loss that counts pads or does not."""
    generator = torch.Generator().manual_seed(0)
    model = gpt2(base.config, generator)
    model.load_state_dict(base.state)
    adapt(model, AdapterSpec(targets=("lm_head",), width=8, rank=8), generator=generator)
    optimizer = AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    for _ in range(steps):
        drawn = torch.randint(len(rows[0]), (32,), generator=generator)
        tokens, mask = (part[drawn] for part in rows)
        losses, counted = token_losses(model(input_ids=tokens).logits, tokens, mask)
        (losses.mean() if score_padding else losses[counted].mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def readings(model: torch.nn.Module, rows: tuple[Tensor, Tensor]) -> dict[str, float]:
    """The three readings on rows that the model has not seen."""
    tokens, mask = rows
    return misread_perplexities(model(input_ids=tokens).logits, tokens, mask)


def main(folder: Path | None = None, *, steps: int = 150, most: int = 512) -> dict[str, dict[str, float]]:
    """Print the readings and the shares; returns the readings by how the model was trained."""
    base = own_base(SIZE, default_cache())
    if folder is None:
        train, test = map("\n".join, split_texts(docstrings(package_files()), (0.8, 0.2)))
    else:
        train, test = (wikitext(folder)[part] for part in ("train", "test"))
    seen, unseen = padded(lines_of(train), base), padded(lines_of(test)[:most], base)
    found = {
        "pads not scored in training": readings(
            trained(base, seen, score_padding=False, steps=steps), unseen
        ),
        "pads scored in training": readings(trained(base, seen, score_padding=True, steps=steps), unseen),
    }
    print(f"{'perplexity on unseen lines':30}" + "".join(f"{name:>22}" for name in READINGS))
    for name, row in found.items():
        print(f"{name:30}" + "".join(f"{row[reading]:22.2f}" for reading in READINGS))
    share = float(unseen[1][:, 1:].double().mean())
    honest = found["pads scored in training"]["right"]
    print(f"text is {share:.1%} of the scored places; {honest:.1f} ** {share:.3f} = ", end="")
    print(f"{diluted_perplexity(honest, share):.2f} where pads cost nothing")

    words = [len(line.split()) for line in lines_of(test)]
    print(f"\nPadded to    text (by words)    perplexity that reads as {PRINTED}")
    for length in (64, 128, 256, 512, 1024):
        wide = text_share(words, length)
        print(f"{length:9}{wide:18.1%}{PRINTED ** (1 / wide):29.4g}")
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
