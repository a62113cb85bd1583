"""The text of a model card, from the records of a training and of a phone probe."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from speechsim_jax.analyses.intervals import Interval, bootstrap_interval
from speechsim_jax.analyses.markdown import literal
from speechsim_jax.training.records import AUDIO_FILE, model_name

# What corpora are called on the Hugging Face hub, by the first word of their name.
_ON_THE_HUB = {"LibriSpeech": "openslr/librispeech_asr"}
_OBJECTIVES = {
    "contrastive": "wav2vec 2.0's contrastive objective (Baevski et al. 2020)",
    "predictive": "HuBERT's masked prediction of clusters (Hsu et al. 2021)",
    "ctc": "CTC on characters (Graves et al. 2006)",
}

_CONVOLUTIONS = {
    "drawn": "were drawn at random",
    "gabor": "were drawn at random, but for the first, a filterbank",
    "cepstrum": "were a mel cepstrum",
}


class Facts(NamedTuple):
    """The contents of a card.

    Attributes:
        name: Name of the model.
        record: training.json.
        config: config.json.
        parameters: Number of parameters.
        file_bytes: Size of the weights' files.
        first: Metrics on held-out speakers before training.
        curve: Metrics on held-out speakers along training, with the key "step".
        by_speaker: Metrics of each held-out speaker.
        audio: audio.json.
        licences: Text of the licence of each corpus.
        probe: probe.json; None if there is none.
        began_with: Name of the pretrained model; None for a pretrained model.
    """

    name: str
    record: dict[str, Any]
    config: dict[str, Any]
    parameters: int
    file_bytes: int
    first: dict[str, Any]
    curve: list[dict[str, Any]]
    by_speaker: dict[str, dict[str, float]]
    audio: dict[str, list[dict[str, Any]]]
    licences: dict[str, str]
    probe: dict[str, Any] | None
    began_with: str | None


def text(facts: Facts) -> str:
    """The card as Markdown, with Hugging Face's metadata at its head."""
    parts = [
        _head(facts), _description(facts), _evaluation(facts), _probe(facts), _curve(facts),
        _audio(facts), _commands(facts),
    ]  # fmt: skip
    return "\n".join(part.rstrip("\n") + "\n" for part in parts if part)


def _head(facts: Facts) -> str:
    objective = facts.record["recipe"]["objective"]
    words = {part["corpus"].split()[0] for part in facts.audio["training"]}
    hub = sorted(_ON_THE_HUB[word] for word in words & _ON_THE_HUB.keys())
    task = "automatic-speech-recognition" if objective == "ctc" else "feature-extraction"
    lines = ["---", "license: apache-2.0", "library_name: transformers", f"pipeline_tag: {task}"]
    lines += ["language: en", "tags:"]
    tags = ("speechsim_jax", "speech", facts.config["model_type"], objective, "tiny")
    lines += [f"- {tag}" for tag in tags]
    lines += ["datasets:", *(f"- {name}" for name in hub)] if hub else []
    return "\n".join([*lines, "---"])


def _description(facts: Facts) -> str:
    recipe, config = facts.record["recipe"], facts.config
    minutes = sum(part["minutes"] for part in facts.audio["training"])
    of_this_training = [p for p in facts.audio["training"] if p.get("heard_in") != "pretraining"]
    began = f" from [{facts.began_with}](../{facts.began_with})" if facts.began_with else ""
    large = config["do_stable_layer_norm"]
    layout = "pre-norm, the layout of Large" if large else "post-norm, the layout of Base"
    start = _CONVOLUTIONS[config.get("convolutions", "drawn")]
    end = ""
    if recipe.get("feature_grad_mult") == 0:
        end = ", and its training left them as they were"
    elif recipe.get("freeze_feature_encoder"):
        end = "; fine-tuning left them as pretraining did"
    amount = f"{sum(part['minutes'] for part in of_this_training):.1f} minutes of speech"
    if facts.began_with:
        amount += f" ({minutes:.1f} with its pretraining)"
    return f"""# {facts.name}

A **small** {config["model_type"]} encoder, trained{began} with
{_OBJECTIVES[recipe["objective"]]} on {amount}.
It comes with speechsim_jax, where `zoo:{facts.name}` stands for it; transformers loads the folder
as `{config["architectures"][0]}`.

- **For**: testing and demonstrating speechsim_jax, and its analysis of trained models in miniature,
  offline.
- **Not for**: recognising or representing speech in earnest, or conclusions about models of the
  usual size. It was trained on {minutes:.0f} minutes of read English and on nothing else: no other
  language, no spontaneous or noisy speech. How it works for speakers of different sex, age or
  accent was not measured.
- **Size**: {facts.parameters:,} parameters, heads included; {config["num_hidden_layers"]}
  transformer layers of {config["hidden_size"]} neurons and {config["num_attention_heads"]} heads,
  {layout}; {recipe["dtype"]}, {facts.file_bytes / 1e6:.2f} MB.
- **Convolutions**: at first they {start}{end}.
"""


def _evaluation(facts: Facts) -> str:
    now = facts.record["held_out"]
    if not now:
        return ""
    parts = facts.audio["held_out"]
    speakers = sorted({name for part in parts for name in part["speakers"]})
    rows = _metrics(facts, now)
    lines = [
        f"## What it learned\n\nOn {len(speakers)} speakers held out of this training, "
        f"{sum(part['minutes'] for part in parts):.1f} minutes. Before training: the same network "
        "at step 0.\n"
    ]
    pretrained_on = sorted({n for part in parts for n in part.get("heard_in_pretraining", [])})
    if pretrained_on:
        lines.append(
            f"Its pretraining used these of them: {', '.join(map(literal, pretrained_on))}.\n"
        )
    lines += ["| | trained | before training | baseline |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    if facts.by_speaker:
        lines.append(
            "\nGain over the baseline, mean over speakers [95 % interval over "
            f"{len(facts.by_speaker)} speakers]:\n"
        )
        lines += [f"- {name}: {_points(gain)}" for name, gain in _gains(facts).items()]
    return "\n".join(lines)


def _metrics(facts: Facts, now: Mapping[str, float]) -> list[tuple[str, str, str, str]]:
    """Rows of metrics: name, trained, before training, baseline."""
    first, objective = facts.first, facts.record["recipe"]["objective"]

    def row(name: str, key: str, form: str, baseline: str) -> tuple[str, str, str, str]:
        return name, format(now[key], form), format(first.get(key, np.nan), form), baseline

    if objective == "contrastive":
        head = facts.record["recipe"]["head"]
        codes = head["num_codevector_groups"] * head["num_codevectors_per_group"]
        return [
            row("the true code among the distractors", "accuracy", ".1%", f"{now['chance']:.1%}"),
            row("contrastive loss", "contrastive_loss", ".3f", f"{-np.log(now['chance']):.3f}"),
            row(f"codes in use, of {codes}", "code_perplexity", ".1f", ""),
        ]
    if objective == "predictive":
        most = f"{now['unigram_accuracy']:.1%} (commonest cluster), {now['chance']:.1%} (guessing)"
        unigram = f"{now['unigram_loss']:.3f} (frequencies)"
        return [
            row("cluster of a masked frame", "masked_accuracy", ".1%", most),
            row("loss on masked frames", "masked_loss", ".3f", unigram),
            row("cluster of an unmasked frame", "unmasked_accuracy", ".1%", most),
        ]
    kinds = [key for key in now if key.startswith(("cer", "wer"))]
    return [row(_rate_name(key), key, ".1%", "") for key in kinds]


def _rate_name(key: str) -> str:
    kind, _, corpus = key.partition("_")
    name = {"cer": "character error rate", "wer": "word error rate"}[kind]
    return f"{name}, {corpus}" if corpus else f"{name}, all"


def _gains(facts: Facts) -> dict[str, Interval]:
    """Mean over speakers of the metrics less those of the baseline."""
    metrics = list(facts.by_speaker.values())
    pairs = {
        "contrastive": {"accuracy less chance": ("accuracy", "chance")},
        "predictive": {
            "accuracy on masked frames less that of the commonest cluster": (
                "masked_accuracy", "unigram_accuracy",
            ),
            "loss of the frequencies less that on masked frames": ("unigram_loss", "masked_loss"),
        },
    }  # fmt: skip
    ones = np.ones(len(metrics))
    return {
        name: bootstrap_interval(np.array([of[a] - of[b] for of in metrics]), ones)
        for name, (a, b) in pairs[facts.record["recipe"]["objective"]].items()
    }


def _points(value: Interval) -> str:
    return f"{value.value:+.4f} [{value.low:+.4f}, {value.high:+.4f}]"


def _probe(facts: Facts) -> str:
    if facts.probe is None or facts.name not in facts.probe["encoders"]:
        return ""
    probe, accuracies = facts.probe, facts.probe["encoders"][facts.name]
    frames = sum(speaker["frames"] for speaker in probe["speakers"].values())
    trained_on = {name for part in facts.audio["training"] for name in part["speakers"]}
    known = len(trained_on & probe["speakers"].keys()) or "none"
    units = probe.get("units", "speakers")
    training = f"was trained on {known} of these speakers"
    if units != "speakers":
        training = "may have been trained on their speakers, who are not all known"
    lines = [
        "## Linear phone probe\n\nShare of frames whose phone a linear classifier predicts, with "
        f"95 % intervals over {len(probe['speakers'])} {units} that it was not trained on "
        f"({frames} frames, {len(probe['phones'])} phones, forced alignments, not gold). This "
        f"model {training}. The best layer and the penalty are "
        f"chosen on other {units} than those tested.\n",
        "| | accuracy |",
        "|---|---|",
    ]
    rows = {literal(name): value for name, value in probe["baselines"].items()}
    rows |= {f"layer {l}": value for l, value in enumerate(accuracies["layers"])}
    rows["**best layer**"] = accuracies["best"]
    lines += [f"| {name} | {_share(value)} |" for name, value in rows.items()]
    lines += [
        f"| best layer less {literal(name)} | {_share(v, '+')} |"
        for name, v in accuracies["gains"].items()
    ]
    return "\n".join(lines)


def _share(value: Mapping[str, float | None], sign: str = "") -> str:
    text = f"{100 * (value['value'] or 0):{sign}.1f} %"
    if value["low"] is None or value["high"] is None:
        return text
    return f"{text} [{100 * value['low']:{sign}.1f}, {100 * value['high']:{sign}.1f}]"


def _curve(facts: Facts) -> str:
    names = {
        "contrastive": ("contrastive_loss", "accuracy"),
        "predictive": ("masked_loss", "masked_accuracy"),
        "ctc": ("loss_per_label", "cer"),
    }[facts.record["recipe"]["objective"]]
    if len(facts.curve) < 2:
        return ""
    lines = ["## Along training, on speakers held out", "", f"| step | {' | '.join(names)} |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for line in facts.curve:
        lines.append(f"| {line['step']} | {' | '.join(f'{line[name]:.3f}' for name in names)} |")
    return "\n".join(lines)


def _audio(facts: Facts) -> str:
    finetuned = any("heard_in" in part for part in facts.audio["training"])
    head = ["corpus", "licence", "from", "utterances", "minutes", "speakers"]
    lines = ["## Audio it was trained on", ""]
    lines.append(f"| {' | '.join(head + ['in'] * finetuned)} |")
    lines.append("|---" * (len(head) + finetuned) + "|")
    for part in facts.audio["training"]:
        cells = [literal(part[key]) for key in ("corpus", "licence", "source")] + [
            part["utterances"]
        ]
        cells += [f"{part['minutes']:.2f}", len(part["speakers"])]
        cells += [part["heard_in"]] if finetuned else []
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "It was mixed to mono, resampled to 16 kHz, cut into crops and masked."]
    lines += ["", "The licences of the corpora:"] if facts.licences else []
    for name, licence in facts.licences.items():
        lines += [
            "",
            f"> **{literal(name)}**",
            ">",
            *(f"> {literal(line)}".rstrip() for line in licence.splitlines()),
        ]
    held_out = sorted({name for part in facts.audio["held_out"] for name in part["speakers"]})
    if held_out:
        lines += [
            "",
            f"Held out: {', '.join(map(literal, held_out))}. All speakers: `{AUDIO_FILE}`.",
        ]
    return "\n".join(lines)


def _commands(facts: Facts) -> str:
    record, recipe = facts.record, facts.record["recipe"]
    finetuned = recipe["objective"] == "ctc"
    script = "finetune" if finetuned else "pretrain"
    command = [f"python -m experiments.{script} --config=experiments/zoo/{facts.name}.toml"]
    if finetuned:
        command.append(f"--pretrained=runs/zoo/{facts.began_with}/model")
    corpus = '"$SPEECHSIM_SPEECH/manifest.tsv"' + (",runs/zoo/synthetic/manifest.tsv" * finetuned)
    command.append(f"--corpus={corpus}")
    of = record.get("units", {}).get("of")
    if isinstance(of, dict):
        command.append(f"--units_from=runs/zoo/{model_name(of['source'])}/model")
        command.append(f"--units_layer={of['layer']}")
    command.append(f"--workdir=runs/zoo/{facts.name}")
    versions = ", ".join(f"{name} {value}" for name, value in record["versions"].items())
    optimiser, device = recipe["optimiser"], record["device"]
    schedule = optimiser["schedule"]
    lines = " \\\n    ".join(command)
    return f"""## How it was made

{record["step"]} steps, seed {recipe["seed"]}, AdamW ({schedule} schedule, learning rate
up to {optimiser["peak_learning_rate"]:g}), {record["seconds"] / 60:.0f} minutes on a
{device["platform"]} ({device["machine"]}), {record["created"]}. Every number of the
recipe is in `training.json`. Versions: {versions}.

```
{lines}
```

`experiments/zoo/README.md` has the commands for all models, cards included.
"""
