"""The picture of README.md: a heat map of a run.

    python docs/pictures.py runs/demo

writes docs/heatmap.png.
"""

import sys
from pathlib import Path

import speechsim_jax as ss


def main(run: Path) -> None:
    """Linear CKA of all layers of all models against all."""
    figure = ss.plot(ss.SimilarityResult.load(run / "result.nc"), "lincka", width=7)
    figure.savefig(Path(__file__).parent / "heatmap.png", dpi=120)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
