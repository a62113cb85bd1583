"""The claim about concepts on layers whose neurons encode known classes."""

import dataclasses
import json
import math

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.analyses.replication import concept_claim, findings
from speechsim_jax.analyses.replication.claims import Roles
from speechsim_jax.analyses.replication.outcomes import ClaimTestResult, Finding
from speechsim_jax.analyses.replication.verdicts import Verdict

pytestmark = pytest.mark.slow

ROWS, CLASSES, SPEAKERS, LAYERS = 4000, 8, 40, 2
ROLES = Roles(
    paradigms={"c": "contrastive", "p": "predictive"},
    sizes={"c": (1, CLASSES), "p": (1, CLASSES)},
)
SAYS = np.random.default_rng(0).integers(CLASSES, size=ROWS)
EVERY = np.arange(CLASSES)
OF_SPEAKER = np.arange(ROWS) % SPEAKERS


def told(noise: float, order: np.ndarray, seed: int) -> np.ndarray:
    """One neuron a class, in the order given, with noise of its own."""
    rng = np.random.default_rng(seed)
    return (SAYS[:, None] == order) + noise * rng.standard_normal((ROWS, CLASSES))


def model(noise: float = 0.3, order: np.ndarray = EVERY, seed: int = 1) -> list:
    return [told(noise, order, seed + 10 * layer) for layer in range(LAYERS)]


def elsewhere(layers: list) -> list:
    """The same neurons, which all tell another class than in `layers`, with a signal in common."""
    return [x - told(0, EVERY, 0) + told(0, np.roll(EVERY, 1), 0) for x in layers]


def result_of(
    models: dict[str, list], speakers: np.ndarray = OF_SPEAKER, labels: bool = True, **options
) -> ss.SimilarityResult:
    arrays = {f"{name}/{l}": x for name, xs in models.items() for l, x in enumerate(xs)}
    tracks = {"speaker": speakers.astype(str), "letter": SAYS.astype(str)}
    return ss.compare_activations(
        arrays, ["lincka"], **({"labels": tracks} if labels else {}),
        **({"errors": True, "groups": speakers, "heldout": True} | options),
    )  # fmt: skip


def by_measure(finding: Finding) -> dict[str, ClaimTestResult]:
    return {test.measure: test for test in finding.tests}


@pytest.fixture(scope="module")
def planted() -> ss.SimilarityResult:
    """Neurons match by what is no label, and tell another class than their match."""
    return result_of({"c": model(0.45), "p": elsewhere(model(0.45))})


def test_it_holds_where_matches_tell_other_classes(planted):
    finding = concept_claim.evaluate([planted], ROLES)
    assert finding.verdict == Verdict.HOLDS and "letter" in finding.claim.text
    tests = by_measure(finding)
    read, kappa = tests["readability"], tests["concept_kappa"]
    assert 0.97 < read.value.difference <= 1
    assert read.margin.difference == pytest.approx(read.value.difference - 0.9)
    assert kappa.margin.difference == pytest.approx(0.6 - kappa.value.difference)
    assert kappa.value.difference < 0.4
    assert kappa.value.standard_error == kappa.margin.standard_error >= 0
    assert read.heldout > 0 and math.isnan(kappa.heldout)
    assert "other seed" not in kappa.baselines


def test_means_and_bounds_are_those_of_the_record(planted):
    """The same from the matrices of the result, written out."""
    data = planted.dataset
    classes = [str(name).startswith("letter/") for name in data["class"].values]
    cells = [(f"{x}/{l}", f"{y}/{l}") for x, y in ("cp", "pc") for l in range(LAYERS)]
    ratios, errors = [], []
    for cell in cells:
        layers = [
            {
                end: float(np.nanmean(data[f"readability{end}"].sel(x=name).values[classes]))
                for end in ("", "_se")
            }
            for name in cell
        ]
        small, large = sorted(layers, key=lambda layer: layer[""])
        ratios.append(small[""] / large[""])
        errors.append(ratios[-1] * sum(layer["_se"] / layer[""] for layer in layers))
    tests = by_measure(concept_claim.evaluate([planted], ROLES))
    value = tests["readability"].value
    assert value.difference == pytest.approx(np.mean(ratios), rel=1e-12)
    assert value.standard_error == pytest.approx(np.mean(errors), rel=1e-12)
    assert value.degrees == pytest.approx(SPEAKERS - 1)
    of_cells = {
        name: [float(data[name].sel(x=x, y=y, track="letter")) for x, y in cells]
        for name in ("concept_agreement", "concept_agreement_chance", "concept_agreement_kappa",
                     "concept_agreement_kappa_se")
    }  # fmt: skip
    kappa = tests["concept_kappa"]
    mean = {name: pytest.approx(np.mean(values), rel=1e-12) for name, values in of_cells.items()}
    assert kappa.value.difference == mean["concept_agreement_kappa"]
    assert kappa.value.standard_error == mean["concept_agreement_kappa_se"]
    assert kappa.baselines["agreement"] == mean["concept_agreement"]
    assert kappa.baselines["chance"] == mean["concept_agreement_chance"]


def test_it_fails_where_the_same_neurons_tell_less():
    shuffled = np.random.default_rng(4).permutation(CLASSES)
    result = result_of({"c": model(0.2), "p": model(0.8, shuffled, 3)})
    finding = concept_claim.evaluate([result], ROLES)
    assert finding.verdict == Verdict.FAILS
    tests = by_measure(finding)
    assert tests["readability"].value.difference < 0.8
    assert tests["readability"].heldout < 0
    assert tests["concept_kappa"].value.difference > 0.9


def test_two_tests_that_disagree_decide_nothing():
    """As readable, and from the same neurons: one part of the claim alone is right."""
    shuffled = np.random.default_rng(4).permutation(CLASSES)
    result = result_of({"c": model(), "p": model(0.3, shuffled, 3)})
    finding = concept_claim.evaluate([result], ROLES)
    verdicts = {test.measure: test.verdict for test in finding.tests}
    assert verdicts == {"readability": Verdict.HOLDS, "concept_kappa": Verdict.FAILS}
    assert finding.verdict == Verdict.UNDECIDED


def test_what_cannot_be_decided(planted):
    without = {"errors": False, "groups": None, "heldout": False}
    models = {"c": model(0.45), "p": elsewhere(model(0.45))}
    no_errors = concept_claim.evaluate([result_of(models, **without)], ROLES)
    assert no_errors.verdict == Verdict.UNTESTED and len(no_errors.tests) == 2
    assert no_errors.lacking == "no standard errors"
    few = concept_claim.evaluate([result_of(models, OF_SPEAKER % 9)], ROLES)
    assert few.verdict in (Verdict.UNDECIDED, Verdict.UNTESTED)
    no_labels = concept_claim.evaluate([result_of(models, labels=False)], ROLES)
    assert no_labels.verdict == Verdict.UNTESTED and "labels" in no_labels.lacking
    alone = dataclasses.replace(ROLES, paradigms={"c": "predictive", "p": "predictive"})
    assert concept_claim.evaluate([planted], alone).tests == ()


def test_a_cell_without_a_standard_error_leaves_its_test_without(planted):
    """But a minority of classes without one does not."""
    data = planted.dataset.copy(deep=True)
    letters = [str(name).startswith("letter/") for name in data["class"].values]
    number = np.flatnonzero(letters)
    data["readability_se"].loc["c/0"][number[: CLASSES // 2]] = np.nan
    data["concept_agreement_kappa_se"].loc["c/0", "p/0", "letter"] = np.nan
    tests = by_measure(concept_claim.evaluate([ss.SimilarityResult(data)], ROLES))
    assert tests["readability"].verdict == Verdict.HOLDS
    assert tests["concept_kappa"].verdict == Verdict.UNTESTED
    data["readability_se"].loc["c/0"][number[CLASSES // 2]] = np.nan
    tests = by_measure(concept_claim.evaluate([ss.SimilarityResult(data)], ROLES))
    assert tests["readability"].verdict == Verdict.UNTESTED


def test_another_seed_is_a_baseline_and_pages_show_the_finding():
    models = {"c": model(0.45), "p": elsewhere(model(0.45)), "s": model(0.45, seed=5)}
    roles = dataclasses.replace(ROLES, seeds=(("c", "s"),))
    finding = concept_claim.evaluate([result_of(models)], roles)
    kappa = by_measure(finding)["concept_kappa"]
    assert kappa.baselines["other seed"] > 0.9 > 0.4 > kappa.value.difference
    page = findings.markdown([finding], [])
    assert "## concepts: holds" in page and "| concept_kappa |" in page
    assert "concepts" in findings.tally([finding])
    (saved,) = json.loads(findings.as_json([finding], {}))["findings"]
    assert saved["verdict"] == "holds" and saved["tests"][1]["heldout"] is None
    assert concept_claim.CLAIM.text in findings.explain()
