"""Run every script of this folder and rewrite its table in `results/`.

python theory/verify/all.py              # all of them, some minutes
python theory/verify/all.py gauge ntk    # these only
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    """Number of scripts that failed."""
    names = sorted(path.stem for path in HERE.glob("*.py") if path != Path(__file__))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(names)}")
    wanted = parser.parse_args().names or names
    if not set(wanted) <= set(names):
        parser.error(f"no such script: {', '.join(sorted(set(wanted) - set(names)))}")
    failed = 0
    for name in wanted:
        script = [sys.executable, str(HERE / f"{name}.py")]
        run = subprocess.run(script, stdout=subprocess.PIPE, text=True, check=False)
        failed += run.returncode != 0
        print(f"== {name}{'' if run.returncode == 0 else ': failed'}\n{run.stdout}", flush=True)
        if run.returncode == 0:
            heading = f"# {name}\n\nMade by `python theory/verify/{name}.py`.\n\n"
            (HERE / "results" / f"{name}.md").write_text(heading + run.stdout, encoding="utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(main())
