"""Flags of the scripts that score representations against each other."""

from absl import flags

from speechsim_jax import figures

MEASURES = flags.DEFINE_string("measures", None, "paper, all, or names; see --help_measures.")
LEVELS = flags.DEFINE_list(
    "levels", [], "Only measures of these levels: neuron, mixed, layer, attention (only if named)."
)
RANK_TOLERANCE = flags.DEFINE_float(
    "rank_tolerance",
    None,
    "Smallest relative eigenvalue kept (default: by the type of the statistics).",
    lower_bound=0.0,
    upper_bound=1.0,
)
KEEP_STATISTICS = flags.DEFINE_bool(
    "keep_statistics",
    False,
    "Keep what scores are made of in --workdir/statistics, for experiments.merge.",
)
FIGURE_FORMATS = flags.DEFINE_list(
    "figure_formats", ["png"], f"Write figures as any of {', '.join(figures.FORMATS)}."
)
flags.register_validator(
    "figure_formats",
    lambda kinds: bool(kinds) and set(kinds) <= set(figures.FORMATS),
    f"expected some of {', '.join(figures.FORMATS)}",
)
FIGURE_STYLE = flags.DEFINE_enum(
    "figure_style", "labelled", list(figures.STYLES), "Heat maps: all labels, or as published."
)
NOTE = flags.DEFINE_string("note", "", "A remark to keep in the result and under its figures.")
