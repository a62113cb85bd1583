#!/bin/sh
# Make the zoo from scratch, from the repository's root:
#   SPEECHSIM_SPEECH=<folder with manifest.tsv> sh experiments/zoo/make.sh
# Finished steps are skipped, and interrupted trainings resume.
set -eu

S="$SPEECHSIM_SPEECH/manifest.tsv"
RUNS=${RUNS:-runs/zoo}
ZOO=${ZOO:-speechsim_jax/models/zoo}
PYTHON=${PYTHON:-python}
# The layer of predictive_s_1 and predictive_s that is clustered for the next model.
UNITS_LAYER=${UNITS_LAYER:-2}

trained() { test -e "$RUNS/$1/model/training.json"; }

pretrain() {
    name=$1
    shift
    trained $name || $PYTHON -m experiments.pretrain --config=experiments/zoo/$name.toml \
        --corpus="$S" --workdir="$RUNS/$name" --resume "$@"
}
for model in contrastive_s contrastive_s_seed1 contrastive_b predictive_s_1; do
    pretrain $model
done
pretrain predictive_s --units_from="$RUNS/predictive_s_1/model" --units_layer="$UNITS_LAYER"
pretrain predictive_b --units_from="$RUNS/predictive_s/model" --units_layer="$UNITS_LAYER"

test -e "$RUNS/synthetic/manifest.tsv" || $PYTHON -m experiments.synthesise --corpus="$S" \
    '--include=librispeech_test_other/*' --held_out=libri-1688,libri-533 \
    --workdir="$RUNS/synthetic"
for model in contrastive_s predictive_s; do
    trained ${model}_ctc || $PYTHON -m experiments.finetune \
        --config=experiments/zoo/${model}_ctc.toml --pretrained="$RUNS/$model/model" \
        --corpus="$S,$RUNS/synthetic/manifest.tsv" --workdir="$RUNS/${model}_ctc" --resume
done

# The probe tests on speakers that pretraining did not use; for the fine-tuned models these are named
# here, as in their recipes.
probe() {
    name=$1
    shift
    test -e "$RUNS/probe/$name/probe.json" || $PYTHON -m experiments.probe \
        --models="$RUNS/$name/model" --audio="$S" \
        --alignments="$SPEECHSIM_SPEECH/alignments_pocketsphinx.tsv" \
        --workdir="$RUNS/probe/$name" "$@"
}
card() {
    name=$1
    shift
    $PYTHON -m experiments.card --trained="$RUNS/$name" --workdir="$ZOO/$name" --overwrite \
        --probe="$RUNS/probe/$name/probe.json" "$@"
}

for model in contrastive_s contrastive_s_seed1 contrastive_b predictive_s_1 predictive_s \
    predictive_b; do
    probe $model
    card $model --corpus="$S"
done
for model in contrastive_s predictive_s; do
    probe ${model}_ctc --test_speakers=libri-1688,libri-533
    card ${model}_ctc --corpus="$S,$RUNS/synthetic/manifest.tsv" --began_with="$ZOO/$model" \
        --licence="synthetic=Apache-2.0 (py-nanotts), reading texts of LibriSpeech test-other"
done
