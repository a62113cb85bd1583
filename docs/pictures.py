"""The picture of README.md, and a gallery of every kind of figure: the zoo on synthetic speech.

    python docs/pictures.py

writes docs/heatmap.png, docs/gallery/*.png and docs/gallery.md. What it measures, in some minutes,
is kept in build/pictures and not measured again.
"""

import dataclasses
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import speechsim_jax as ss
from speechsim_jax import figures
from speechsim_jax.analyses import learning_dynamics
from speechsim_jax.analyses.probing import figure as probing
from speechsim_jax.analyses.probing import summary
from speechsim_jax.analyses.replication import presets, published_maps
from speechsim_jax.audio import synthetic
from speechsim_jax.commands import demo, dynamics, pretrain, probe, training
from speechsim_jax.figures.concepts import draw as draw_concepts
from speechsim_jax.results.concepts import read_concepts
from speechsim_jax.training.recipe import ContrastiveRecipe, read_recipe

DOCS = Path(__file__).resolve().parent
DPI = 110
NOTE = demo.NOTE
STEPS = (0, 5, 10, 20, 40, 80)


class Picture(NamedTuple):
    """A figure of the gallery.

    Attributes:
        name: of its file.
        call: what draws it.
        text: what it shows.
    """

    name: str
    call: str
    text: str


class Chapter(NamedTuple):
    """Figures that are about one question.

    Attributes:
        heading: of the chapter.
        pictures: its figures.
    """

    heading: str
    pictures: tuple[Picture, ...]


GALLERY = (
    Chapter(
        "Maps of scores",
        (
            Picture(
                "heatmap",
                'ss.plot(result, "lincka", width=7)',
                "Every layer against every other one; lines separate models. In each row, the "
                "layers of a model that are not found to differ from the closest one are outlined "
                "with it. `heatmap_MEASURE.png` of `speechsim compare`.",
            ),
            Picture(
                "heatmap_narrow",
                'ss.plot(result, "maxcorr", width=3.5, reference="none")',
                "A column of a paper. Names that have no room at their layers stand below the map, "
                "whole; none is ever shortened.",
            ),
            Picture(
                "heatmap_paper",
                'ss.plot(result, "svcca", style="paper")',
                "The layout of the published maps, to be compared with them "
                "(`--figure_style=paper`).",
            ),
        ),
    ),
    Chapter(
        "Maps of differences",
        (
            Picture(
                "difference_from",
                'figures.difference_from(result, "lincka", "random:contrastive_s")',
                "What `result.differences` finds: each score minus that of a reference, here the "
                "untrained model's layer at the same relative depth. Outlined cells are not found "
                "to differ from it, at a false discovery rate of 5 %.",
            ),
            Picture(
                "difference",
                "figures.difference(result.select(models[:2]), result.select(untrained), "
                '"lincka", names=("trained", "untrained"))',
                "Two results, or two parts of one, cell by cell. A dash is below zero: both hues "
                "are one grey in a copy.",
            ),
            Picture(
                "finetuned",
                'figures.finetuned(result, "svcca", "contrastive_s_ctc", "contrastive_s")',
                "The layers before fine-tuning against those after it, and each with itself on the "
                "right. `speechsim replicate` draws it for each fine-tuned model.",
            ),
            Picture(
                "published",
                "published_maps.side_by_side(published)",
                "A map of a run next to the published one of the layers at the same relative "
                "depth, and their difference (`speechsim replicate`).",
            ),
        ),
    ),
    Chapter(
        "Whole models",
        (
            Picture(
                "pairs",
                'figures.model_pairs(result, "lincka")',
                "Every two models, closest first: the mean of every layer with its closest of the "
                "other model. Filled pairs are not found to differ from the closest; "
                "`pairs_MEASURE.png` of `speechsim compare` with three models or more.",
            ),
            Picture(
                "plane",
                'figures.plane(result, "lincka")',
                "All layers of all models, as near to each other as they are alike (classical "
                "multidimensional scaling); each model is a line, from its first layer on. "
                "`plane_MEASURE.png` of `speechsim compare` with three models or more.",
            ),
        ),
    ),
    Chapter(
        "Curves over depth",
        (
            Picture(
                "trend",
                'figures.layer_trend(result.select(models), "lincka")',
                "How similar a layer is to another model's closest layer, and to the one at its "
                "own depth, with 95 % intervals; `trend_MEASURE.png` of `speechsim compare`.",
            ),
            Picture(
                "facts",
                "figures.facts(result.select(models))",
                "What scores stand on: ranks, condition numbers, outliers, and the scores that "
                "unrelated representations would have; `facts.png`.",
            ),
            Picture(
                "content",
                'concept_figures["content"]',
                "How well each layer encodes labels and acoustics; the first of three figures of "
                "`speechsim concepts`.",
            ),
            Picture(
                "localisation",
                'concept_figures["localisation"]',
                "How much of that is in one neuron.",
            ),
            Picture(
                "agreement",
                'concept_figures["agreement_letter"]',
                "Whether matched neurons of two models encode the same.",
            ),
            Picture(
                "probe",
                "probing.accuracy_by_depth(probed, untrained)",
                "What a linear probe reads from each layer, with the models untrained and two "
                "baselines (`speechsim probe`).",
            ),
        ),
    ),
    Chapter(
        "Attention heads",
        (
            Picture(
                "matches",
                'figures.head_matches(result, "attn_js", "contrastive_s", "predictive_s")',
                "For every head of one model the head of another that attends most alike.",
            ),
            Picture(
                "heads",
                'figures.plot_heads(result, "attn_js", "contrastive_s/2", "predictive_s/2")',
                "All heads of two layers; the best match of each row is circled.",
            ),
        ),
    ),
    Chapter(
        "Along training",
        (
            Picture(
                "dynamics",
                'learning_dynamics.steps_map(trained, "svcca")',
                "When each layer has become what it is at the end of training "
                "(`speechsim dynamics`); here of a very short one.",
            ),
            Picture(
                "dynamics_layers",
                'learning_dynamics.layers_maps(trained, "svcca")',
                "The same of all layers against all layers.",
            ),
        ),
    ),
)


def main() -> None:
    """Measure, draw, and write the page."""
    names = measured(DOCS.parent / "build" / "pictures")
    heatmap = ss.plot(names["result"], "lincka", width=7, reference="none")
    heatmap.savefig(DOCS / "heatmap.png", dpi=120)
    folder = DOCS / "gallery"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for chapter in GALLERY:
        for picture in chapter.pictures:
            figure = eval(picture.call, names)  # the call that the page shows
            figure.savefig(folder / f"{picture.name}.png", dpi=DPI)
    (DOCS / "gallery.md").write_text(page())


def page() -> str:
    """docs/gallery.md."""
    lines = [
        "# Gallery",
        "",
        "Every kind of figure, as `python docs/pictures.py` draws them: of the zoo's encoders on",
        "synthetic speech, each by the call below it, with `import speechsim_jax as ss` and",
        "`from speechsim_jax import figures`; figures without such a call are those of a command.",
        "`savefig` writes png, pdf and svg; text in pdf and svg stays text. How names, colours and",
        "outlines are chosen: [figures](design/figures.md).",
    ]
    for chapter in GALLERY:
        lines += ["", f"## {chapter.heading}"]
        for picture in chapter.pictures:
            lines += ["", f"![{picture.name}](gallery/{picture.name}.png)"]
            lines += ["", f"`{picture.call}`", "", picture.text]
    return "\n".join(lines) + "\n"


# --- what is drawn ---


def measured(workdir: Path) -> dict[str, Any]:
    """What the calls of the gallery name, from a folder or measured into it."""
    preset = presets.load_preset("zoo", None)
    speech = workdir / "speech" / "manifest.tsv"
    if not speech.exists():
        demo.write_speech(speech.parent)
    sources = dict.fromkeys(
        [*preset.models, *(pair[0] for pair in (*preset.finetuned, *preset.seeds))]
    )
    encoders: list[Any] = [ss.load_encoder(source) for source in sources]
    encoders += [ss.random_like(encoders[k], k) for k in range(2)]
    models = [encoder.name for encoder in encoders[:4]]

    def compared(name: str, *args: Any, **options: Any) -> ss.SimilarityResult:
        path = workdir / f"{name}.nc"
        if not path.exists():
            ss.compare(*args, note=NOTE, errors_source="sample", **options).save(path)
        return ss.SimilarityResult.load(path)

    result = compared(
        "result",
        encoders,
        str(speech),
        ("maxcorr", "linreg", "svcca", "lincka", "attn_js"),
        levels=("neuron", "mixed", "layer", "attention"),
        max_minutes=preset.minutes,
        attention_max_seconds=30,
    )
    labels = (f"letter:{speech.with_name(synthetic.ALIGNMENTS)}:letter", "speaker")
    tracked = compared(
        "concepts", encoders[:4], str(speech), ("maxcorr", "linreg"), labels=labels,
        tracks=("logmel", "f0"),
    )  # fmt: skip
    maps = published_maps.load()
    aligned = published_maps.align(result, maps, dict(preset.published_as))
    concepts = read_concepts(tracked)
    return {
        "ss": ss,
        "figures": figures,
        "learning_dynamics": learning_dynamics,
        "probing": probing,
        "published_maps": published_maps,
        "result": result,
        "models": models,
        "untrained": [encoder.name for encoder in encoders[-2:]],
        "probed": _kept(workdir / "probed.pickle", lambda: _probed(speech, workdir / "probe")),
        "concept_figures": draw_concepts(concepts, tracked.notes(), tracked.interval_key("linreg")),
        "published": next(each for each in aligned if each.measure == "svcca"),
        "trained": _kept(workdir / "trained.pickle", lambda: _trained(speech, workdir)),
    }


def _kept(path: Path, make: Callable[[], Any]) -> Any:
    """What was made before, or is made now."""
    if not path.exists():
        path.write_bytes(pickle.dumps(make()))
    return pickle.loads(path.read_bytes())


def _probed(speech: Path, workdir: Path) -> summary.ProbeSummary:
    """Letters, read from the layers of two models."""
    config = probe.Config(
        models=("zoo:contrastive_s", "zoo:predictive_s"),
        audio=str(speech),
        alignments=str(speech.with_name(synthetic.ALIGNMENTS)),
        alignment_tier="letter",
        workdir=str(workdir),
        test_speakers=(probe.ALL,),
        max_frames=6000,
        overwrite=True,
    )
    return probe.run(config)


def _trained(speech: Path, workdir: Path) -> learning_dynamics.LearningDynamics:
    """The layers of a short pretraining, at every snapshot."""
    recipe = read_recipe(DOCS.parent / "experiments" / "zoo" / "contrastive_s.toml")
    assert isinstance(recipe, ContrastiveRecipe)
    audio = dataclasses.replace(recipe.audio, held_out=())
    recipe = dataclasses.replace(recipe, steps=STEPS[-1], snapshots=STEPS, audio=audio)
    run = str(workdir / "pretraining")
    pretrain.run(
        pretrain.Config(recipe, training.Run(corpus=(str(speech),), workdir=run, overwrite=True))
    )
    config = dynamics.Config(
        run=run,
        audio=str(speech),
        workdir=str(workdir / "dynamics"),
        measures=("svcca",),
        overwrite=True,
    )
    return dataclasses.replace(dynamics.run(config), note=NOTE)


if __name__ == "__main__":
    main()
