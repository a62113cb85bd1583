"""Names that anybody could give a file, a model or a label, to have them obeyed and not shown."""

import dataclasses
import json

from speechsim_jax.errors import printable
from speechsim_jax.results.result import SimilarityResult
from tests.support.report_results import Shape, random_result

# Whatever runs sets this variable of the page.
SENTINEL = "window.__hostile"
NAMES = (
    f"<script>{SENTINEL}=1</script>",
    f"</script><script>{SENTINEL}=2</script>",
    "<!--<script>",
    f'"><img src=x onerror={SENTINEL}=3>',
    f"' onmouseover='{SENTINEL}=4' x='",
    f"javascript:{SENTINEL}=5",
    f"<svg onload={SENTINEL}=6>",
    f'<a href="javascript:{SENTINEL}=7">link',
    "<iframe srcdoc='<p>'>",
    f"${{{SENTINEL}=8}}",
    f"{{{{constructor.constructor('{SENTINEL}=9')()}}}}",
    "$title $data $$ %{x}<br><sup>up<b>bold",
    "&lt;b&gt; &amp;#60; ]]>",
    "\\u003cscript\\u003e",
    "lines\u2028and\u2029paragraphs\r\n\tend",
    "\u202egnihtemos\u202c \u2066isolated\u2069",
    "\x1b[31mred\x1b]0;title\x07\x9b2J",
    "n\x00ul\x7f\ufffe",
    "undecodable\udcff.flac",
    "=HYPERLINK('x')",
    "__proto__",
    "offset",
    "long " * 60,
)


def hostile_result() -> SimilarityResult:
    """A result in which everything that comes from outside is one of `NAMES`."""
    models = {printable(name): Shape(2, 6, 2 * (k == 0)) for k, name in enumerate(NAMES)}
    result = random_result(models)
    # The first with tags that plotly knows, and would draw.
    names = (NAMES[11], NAMES[7], NAMES[0], NAMES[3])
    renamed = dict(zip(("maxcorr", "lincka", "svcca", "attn_js"), names, strict=True))
    dataset = result.dataset
    for variable in list(dataset.data_vars):
        for old, new in renamed.items():
            # The matches of neurons and directions are known by their names.
            if str(variable) in (old, f"{old}_heads", f"{old}_best", f"{old}_match",
                                 f"{old}_baseline", f"{old}_floor"):  # fmt: skip
                dataset = dataset.rename({variable: str(variable).replace(old, new)})
    for name in renamed.values():
        about = json.loads(dataset[name].attrs["definition"])
        about |= {"summary": NAMES[3], "reference": NAMES[7], "level": NAMES[6]}
        dataset[name].attrs["definition"] = json.dumps(about)
    everything = dict.fromkeys(NAMES, 1)
    facts = {"origin": NAMES[1], "fingerprint": NAMES[4], "layouts": everything}
    facts |= {"passed_over": everything, "alignments": everything, "speakers": 3}
    facts |= {name: name for name in NAMES} | {"repeated": {"utterances": 2, "for": list(NAMES)}}
    details = {key: NAMES[3] for key in ("source", "revision", "sha256", "model_type")}
    attributes = {
        **result.attributes,
        "note": " ".join(NAMES),
        "models": {str(model): details | {"notes": list(NAMES)} for model in result.models},
        "corpus": facts,
        "settings": {"drop_labels": list(NAMES), **everything},
        "alignments": {"tier": NAMES[2], "groups": {name: {name: name} for name in NAMES}},
        "skipped": [{"id": name, "reason": name} for name in NAMES],
        "reading": everything,
        "merged_without": list(NAMES),
        **{name: name for name in NAMES},
        **{f"group {name}": {name: name} for name in NAMES},
    }
    return dataclasses.replace(
        result, dataset=dataset.assign_attrs(provenance=json.dumps(attributes))
    )
