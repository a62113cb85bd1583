"""`compare` on several meshes of four simulated devices, for `test_mesh`: prints JSON.

By mesh, the largest difference of each measure from one device; the mesh that the result names; and
a run that is broken off on one mesh and goes on on another.
"""

import json
import sys
import unittest.mock
from pathlib import Path

import numpy as np

import speechsim_jax as ss
from speechsim_jax import accumulate

FOLDER = Path(__file__).parent / "data" / "parity"
MESHES = ("data:4", "data:2,feature:2")
SETTINGS = {
    "measures": "maxcorr,linreg,lincka,lincka_debiased,svcca,pwcca,rsa,attn_frobenius,attn_pearson",
    "batch_seconds": 2,
    "buckets": 1,
    "rows_per_update": 40,
    "sample_frames": 100,
    "progress": False,
}


class Killed(Exception):
    """Stands for whatever ends a run."""


def main(checkpoints: str) -> None:
    """Run them all."""
    rng = np.random.default_rng(0)
    lengths = rng.choice([4000, 7000, 9000], 13)
    audio = {f"u{i}": 0.1 * rng.standard_normal(n) for i, n in enumerate(lengths)}
    audio = {name: wave.astype(np.float32) for name, wave in audio.items()}
    encoders = [ss.load_encoder(FOLDER / name) for name in ("wavlm-base", "hubert-large")]

    def run(mesh: str, **more) -> ss.SimilarityResult:
        return ss.compare(encoders, audio, mesh=mesh, **SETTINGS, **more)

    one = run("data:1")

    def errors(found: ss.SimilarityResult) -> dict[str, float]:
        apart = {m: found.matrix(m).values - one.matrix(m).values for m in one.measures}
        return {measure: float(np.abs(values).max()) for measure, values in apart.items()}

    report: dict[str, object] = {}
    pooled = dict(measures="lincka", pool="utterance")
    a, b = (ss.compare(encoders, audio, mesh=m, **SETTINGS | pooled) for m in ("data:1", "data:4"))
    apart = a.matrix("lincka").values - b.matrix("lincka").values
    report["pooled"] = {"errors": {"lincka": float(np.abs(apart).max())}}
    for mesh in MESHES:
        found = run(mesh)
        report[mesh] = {"errors": errors(found), "mesh": found.attributes["mesh"]}
    append, heard = accumulate.Statistics.append, []

    def dies(self, *batch):
        heard.append(batch)
        if len(heard) > 2:
            raise Killed
        append(self, *batch)

    saved = {"checkpoint_dir": checkpoints}
    with unittest.mock.patch.object(accumulate.Statistics, "append", dies):
        try:
            run("data:2,feature:2", checkpoint_minutes=0, **saved)
        except Killed:
            report["broken off"] = len(heard)
    report["gone on"] = {"errors": errors(run("data:4", **saved))}
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
