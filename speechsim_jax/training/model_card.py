"""The text of a model card, from what is known of a training."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from speechsim_jax.analyses.probing.classifier import Interval, interval
from speechsim_jax.training.records import AUDIO_FILE, model_name

# What corpora are called on the Hugging Face hub, by the first word of their name.
_ON_THE_HUB = {"LibriSpeech": "openslr/librispeech_asr"}
_OBJECTIVES = {
    "contrastive": "wav2vec 2.0's contrastive objective (Baevski et al. 2020)",
    "predictive": "HuBERT's masked prediction of units (Hsu et al. 2021)",
    "ctc": "CTC on characters (Graves et al. 2006)",
}

_CONVOLUTIONS = {
    "drawn": "were drawn at random",
    "gabor": "were drawn at random, but for the first, a filterbank",
    "cepstrum": "were a mel cepstrum",
}


class Facts(NamedTuple):
    """All that a card is made of. `first`: held-out marks before training."""

    name: str
    told: dict[str, Any]
    config: dict[str, Any]
    parameters: int
    file_bytes: int
    first: dict[str, float]
    curve: list[dict[str, float]]
    by_speaker: dict[str, dict[str, float]]
    audio: dict[str, list[dict[str, Any]]]
    texts: dict[str, str]
    probe: dict[str, Any] | None
    began_with: str | None


def text(facts: Facts) -> str:
    """All of the card."""
    parts = [
        _head(facts), _what(facts), _learned(facts), _probed(facts), _curve(facts),
        _heard_audio(facts), _made(facts),
    ]  # fmt: skip
    return "\n".join(part.rstrip("\n") + "\n" for part in parts if part)


def _head(facts: Facts) -> str:
    objective = facts.told["recipe"]["objective"]
    words = {part["corpus"].split()[0] for part in facts.audio["training"]}
    hub = sorted(_ON_THE_HUB[word] for word in words & _ON_THE_HUB.keys())
    task = "automatic-speech-recognition" if objective == "ctc" else "feature-extraction"
    lines = ["---", "license: apache-2.0", "library_name: transformers", f"pipeline_tag: {task}"]
    lines += ["language: en", "tags:"]
    tags = ("speechsim_jax", "speech", facts.config["model_type"], objective, "tiny")
    lines += [f"- {tag}" for tag in tags]
    lines += ["datasets:", *(f"- {name}" for name in hub)] if hub else []
    return "\n".join([*lines, "---"])


def _what(facts: Facts) -> str:
    told, config = facts.told, facts.config
    recipe = told["recipe"]
    minutes = sum(part["minutes"] for part in facts.audio["training"])
    own = [p for p in facts.audio["training"] if p.get("heard_in") != "pretraining"]
    began = f" from [{facts.began_with}](../{facts.began_with})" if facts.began_with else ""
    large = config["do_stable_layer_norm"]
    layout = "pre-norm, the layout of Large" if large else "post-norm, the layout of Base"
    start = _CONVOLUTIONS[config.get("convolutions", "drawn")]
    end = ""
    if recipe.get("feature_grad_mult") == 0:
        end = ", and its training left them as they were"
    elif recipe.get("freeze_feature_encoder"):
        end = "; fine-tuning left them as pretraining did"
    amount = f"{sum(part['minutes'] for part in own):.1f} minutes of speech"
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
  usual size. It has heard {minutes:.0f} minutes of read English and knows nothing else: no other
  language, no spontaneous or noisy speech. Nothing is known of how it treats speakers of different
  sex, age or accent.
- **Size**: {facts.parameters:,} parameters, heads included; {config["num_hidden_layers"]}
  transformer layers of {config["hidden_size"]} neurons and {config["num_attention_heads"]} heads,
  {layout}; {recipe["dtype"]}, {facts.file_bytes / 1e6:.2f} MB.
- **Convolutions**: at first they {start}{end}.
"""


def _learned(facts: Facts) -> str:
    now = facts.told["held_out"]
    if not now:
        return ""
    part = facts.audio["held_out"]
    speakers = sorted({name for each in part for name in each["speakers"]})
    rows = _marks(facts, now)
    lines = [
        f"## What it learned\n\nOn {len(speakers)} speakers held out of this training, "
        f"{sum(each['minutes'] for each in part):.1f} minutes. Before training: the same network "
        "at step 0.\n"
    ]
    heard = sorted({n for each in part for n in each.get("heard_in_pretraining", [])})
    if heard:
        lines.append(f"Its pretraining heard these of them: {', '.join(heard)}.\n")
    lines += ["| | trained | before training | knowing nothing |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    if facts.by_speaker:
        lines.append(
            "\nGained on knowing nothing, mean over speakers [95 % interval over "
            f"{len(facts.by_speaker)} speakers]:\n"
        )
        lines += [f"- {name}: {_points(gain)}" for name, gain in _gains(facts).items()]
    return "\n".join(lines)


def _marks(facts: Facts, now: Mapping[str, float]) -> list[tuple[str, str, str, str]]:
    """The marks worth a look: name, trained, before, baseline."""
    first, objective = facts.first, facts.told["recipe"]["objective"]

    def row(name: str, key: str, form: str, baseline: str) -> tuple[str, str, str, str]:
        return name, format(now[key], form), format(first.get(key, np.nan), form), baseline

    if objective == "contrastive":
        head = facts.told["recipe"]["head"]
        codes = head["num_codevector_groups"] * head["num_codevectors_per_group"]
        return [
            row("the true code among the distractors", "accuracy", ".1%", f"{now['chance']:.1%}"),
            row("contrastive loss", "contrastive_loss", ".3f", f"{-np.log(now['chance']):.3f}"),
            row(f"codes in use, of {codes}", "code_perplexity", ".1f", ""),
        ]
    if objective == "predictive":
        most = f"{now['unigram_accuracy']:.1%} (commonest unit), {now['chance']:.1%} (guessing)"
        unigram = f"{now['unigram_loss']:.3f} (frequencies)"
        return [
            row("unit of a masked frame", "masked_accuracy", ".1%", most),
            row("loss on masked frames", "masked_loss", ".3f", unigram),
            row("unit of a frame that is heard", "unmasked_accuracy", ".1%", most),
        ]
    kinds = [key for key in now if key.startswith(("cer", "wer"))]
    return [row(_rate_name(key), key, ".1%", "") for key in kinds]


def _rate_name(key: str) -> str:
    kind, _, corpus = key.partition("_")
    name = {"cer": "character error rate", "wer": "word error rate"}[kind]
    return f"{name}, {corpus}" if corpus else f"{name}, all"


def _gains(facts: Facts) -> dict[str, Interval]:
    """Accuracy of each speaker less that of knowing nothing."""
    marks = list(facts.by_speaker.values())
    pairs = {
        "contrastive": {"accuracy less chance": ("accuracy", "chance")},
        "predictive": {
            "accuracy on masked frames less that of the commonest unit": (
                "masked_accuracy", "unigram_accuracy",
            ),
            "loss of the frequencies less that on masked frames": ("unigram_loss", "masked_loss"),
        },
    }  # fmt: skip
    ones = np.ones(len(marks))
    return {
        name: interval(np.array([each[a] - each[b] for each in marks]), ones)
        for name, (a, b) in pairs[facts.told["recipe"]["objective"]].items()
    }


def _points(value: Interval) -> str:
    return f"{value.value:+.4f} [{value.low:+.4f}, {value.high:+.4f}]"


def _probed(facts: Facts) -> str:
    if facts.probe is None or facts.name not in facts.probe["encoders"]:
        return ""
    probe, own = facts.probe, facts.probe["encoders"][facts.name]
    frames = sum(each["frames"] for each in probe["speakers"].values())
    heard = {name for part in facts.audio["training"] for name in part["speakers"]}
    known = len(heard & probe["speakers"].keys()) or "none"
    lines = [
        "## Linear phone probe\n\nShare of frames whose phone a linear classifier reads, with 95 % "
        f"intervals over {len(probe['speakers'])} speakers that it was not trained on "
        f"({frames} frames, {len(probe['phones'])} phones, forced alignments, not gold). Of these "
        f"speakers this model heard {known} in training. The best layer and the penalty are chosen "
        "on other speakers than those tested.\n",
        "| | frames read right |",
        "|---|---|",
    ]
    rows = {name: value for name, value in probe["baselines"].items()}
    rows |= {f"layer {l}": value for l, value in enumerate(own["layers"])}
    rows["**best layer**"] = own["best"]
    lines += [f"| {name} | {_share(value)} |" for name, value in rows.items()]
    lines += [f"| best layer less {name} | {_share(v, '+')} |" for name, v in own["gains"].items()]
    return "\n".join(lines)


def _share(value: Mapping[str, float | None], sign: str = "") -> str:
    told = f"{100 * (value['value'] or 0):{sign}.1f} %"
    if value["low"] is None or value["high"] is None:
        return told
    return f"{told} [{100 * value['low']:{sign}.1f}, {100 * value['high']:{sign}.1f}]"


def _curve(facts: Facts) -> str:
    names = {
        "contrastive": ("contrastive_loss", "accuracy"),
        "predictive": ("masked_loss", "masked_accuracy"),
        "ctc": ("loss_per_label", "cer"),
    }[facts.told["recipe"]["objective"]]
    if len(facts.curve) < 2:
        return ""
    lines = ["## Along training, on speakers held out", "", f"| step | {' | '.join(names)} |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for each in facts.curve:
        lines.append(f"| {each['step']} | {' | '.join(f'{each[name]:.3f}' for name in names)} |")
    return "\n".join(lines)


def _heard_audio(facts: Facts) -> str:
    finetuned = any("heard_in" in part for part in facts.audio["training"])
    head = ["corpus", "licence", "from", "utterances", "minutes", "speakers"]
    lines = ["## Audio it was trained on", ""]
    lines.append(f"| {' | '.join(head + ['in'] * finetuned)} |")
    lines.append("|---" * (len(head) + finetuned) + "|")
    for part in facts.audio["training"]:
        cells = [part["corpus"], part["licence"], part["source"], part["utterances"]]
        cells += [f"{part['minutes']:.2f}", len(part["speakers"])]
        cells += [part["heard_in"]] if finetuned else []
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "It was mixed to mono, resampled to 16 kHz, cut into crops and masked."]
    lines += ["", "What the corpora say of their licences:"] if facts.texts else []
    for name, words in facts.texts.items():
        lines += ["", f"> **{name}**", ">", *(f"> {line}".rstrip() for line in words.splitlines())]
    away = sorted({name for part in facts.audio["held_out"] for name in part["speakers"]})
    if away:
        lines += ["", f"Held out: {', '.join(away)}. All speakers: `{AUDIO_FILE}`."]
    return "\n".join(lines)


def _made(facts: Facts) -> str:
    told, recipe = facts.told, facts.told["recipe"]
    finetuned = recipe["objective"] == "ctc"
    script = "finetune" if finetuned else "pretrain"
    command = [f"python -m experiments.{script} --config=experiments/zoo/{facts.name}.toml"]
    if finetuned:
        command.append(f"--pretrained=runs/zoo/{facts.began_with}/model")
    corpus = '"$SPEECHSIM_SPEECH/manifest.tsv"' + (",runs/zoo/synthetic/manifest.tsv" * finetuned)
    command.append(f"--corpus={corpus}")
    of = told.get("units", {}).get("of")
    if isinstance(of, dict):
        command.append(f"--units_from=runs/zoo/{model_name(of['source'])}/model")
        command.append(f"--units_layer={of['layer']}")
    command.append(f"--workdir=runs/zoo/{facts.name}")
    versions = ", ".join(f"{name} {value}" for name, value in told["versions"].items())
    optimiser = recipe["optimiser"]
    joined = " \\\n    ".join(command)
    return f"""## How it was made

{told["step"]} steps, seed {recipe["seed"]}, AdamW ({optimiser["schedule"]} schedule, learning rate
up to {optimiser["peak_learning_rate"]:g}), {told["seconds"] / 60:.0f} minutes on a
{told["device"]["platform"]} ({told["device"]["machine"]}), {told["created"]}. Every number of the
recipe is in `training.json`. Versions: {versions}.

```
{joined}
```

`experiments/zoo/README.md` has the commands for all models, cards included.
"""
