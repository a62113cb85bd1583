"""The section of exemplars: which neurons, their frames, and what is heard there."""

import io
import re
import wave
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.audio.alignments import Segments
from speechsim_jax.errors import UserError
from speechsim_jax.report import exemplars, report_page
from speechsim_jax.results.result import SimilarityResult
from tests.support.report_results import SMALL, Page, Shape, random_result, with_exemplars

LENGTHS = {f"u{k}.wav": 16_000 + 1000 * k for k in range(8)}


def waves(lengths: dict[str, int] = LENGTHS) -> dict[str, np.ndarray]:
    """Ramps, so that every sample tells its place: sample t of an utterance is t / 100,000."""
    return {name: (np.arange(n) / 1e5).astype(np.float32) for name, n in lengths.items()}


@pytest.fixture(scope="module")
def result() -> SimilarityResult:
    return with_exemplars(random_result(SMALL), LENGTHS)


def section(page: str) -> str:
    return page.split('<section id="exemplars">')[1].split("</section>")[0]


def titles(page: str) -> list[str]:
    return re.findall(r"<summary>(.*?)</summary>", section(page))


def sounds(page: str) -> list[np.ndarray]:
    """The samples of every snippet, -1 to 1."""
    found = []
    for text in re.findall(r'src="data:audio/wav;base64,([^"]*)"', page):
        with wave.open(io.BytesIO(b64decode(text))) as file:
            assert (file.getnchannels(), file.getframerate()) == (1, 16_000)
            assert (file.getsampwidth(), file.getnframes()) == (1, 8000)
            data = np.frombuffer(file.readframes(8000), np.uint8)
        found.append((data.astype(float) - 128) / 127)
    return found


def test_pairs_are_the_best_matches_in_other_models(result: SimilarityResult) -> None:
    corr, match = (result.dataset[name].values for name in ("best_corr", "best_match"))
    models = [name.model for name in result.representations]
    expected = {}
    for x, label in enumerate(map(str, result.representations)):
        others = [y for y, model in enumerate(models) if model != models[x]]
        block = np.nan_to_num(corr[x, others], nan=-1)
        y, neuron = np.unravel_index(block.argmax(), block.shape)
        y = others[y]
        pair = ((label, int(neuron)), (str(result.representations[y]), int(match[x, y, neuron])))
        expected.setdefault(frozenset(pair), (block.max(), pair))
    shown = titles(report_page(result))
    assert len(shown) == len(expected) and len(shown) > 8
    for title, (value, pair) in zip(shown, sorted(expected.values(), key=lambda e: -e[0])):
        (x, i), (y, j) = ((label.replace("<b>&", "&lt;b&gt;&amp;"), n) for label, n in pair)
        assert title == f"{x}, neuron {i} and {y}, neuron {j}: |r| {value:.4f}"


def test_a_model_alone_is_matched_in_its_other_layers() -> None:
    alone = with_exemplars(random_result({"a": Shape(4, 9, 0)}), LENGTHS)
    shown = titles(report_page(alone))
    assert shown
    for title in shown:
        x, y = re.findall(r"a/(\d), neuron", title)
        assert x != y


def test_tables_have_the_exemplars_of_both(result: SimilarityResult) -> None:
    first = section(report_page(result)).split("</details>")[0]
    for label, number in re.findall(r"<h3>(.*?), neuron (\d+)</h3>", first):
        found = result.exemplars(label.replace("&lt;b&gt;&amp;", "<b>&"), int(number))
        rows = re.findall(
            r"<td >([^<]*)</td><td >([^<]*)</td><td >([^<]*)</td></tr>",
            first.split(f"{label}, neuron {number}</h3>")[1].split("</table>")[0],
        )
        assert rows == [(f"{e.value:.4g}", e.utterance, f"{e.seconds:.2f}") for e in found]
        assert len(rows) == 5


def test_named_neurons_come_first_with_their_best_match(result: SimilarityResult) -> None:
    corr, match = (result.dataset[name].values for name in ("best_corr", "best_match"))
    page = report_page(result, neurons=["org/second-base/1:17"])
    others = [0, 1, 2, 3, *range(7, 13)]
    y = others[int(corr[5, others, 17].argmax())]
    title = titles(page)[0]
    assert title.startswith("org/second-base/1, neuron 17 and ")
    assert f"neuron {match[5, y, 17]}: |r| {corr[5, y, 17]:.4f}" in title
    assert len(titles(page)) == len(titles(report_page(result))) + 1


def test_without_matches_only_named_neurons_are_shown(result: SimilarityResult) -> None:
    bare = SimilarityResult(result.dataset.drop_vars(["best_corr", "best_match"]))
    page = report_page(bare, neurons=["org/second-base/1:3"])
    assert titles(page) == ["org/second-base/1, neuron 3"]
    assert "maxcorr was not measured" in section(page)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("org/second-base/1", "expected MODEL/LAYER:NEURON"),
        ("org/second-base/1:x", "expected MODEL/LAYER:NEURON"),
        ("org/second-base/9:3", "did you mean"),
        ("org/second-base/1:24", "it has neurons 0 to 23"),
    ],
)
def test_a_neuron_that_is_none_is_refused(result: SimilarityResult, name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        report_page(result, neurons=[name])


def test_a_result_without_exemplars_has_no_section() -> None:
    without = random_result(SMALL)
    page = report_page(without, audio=waves())
    assert "exemplars" not in page.lower().replace('["exemplars"]', "")
    with pytest.raises(UserError, match="no exemplars"):
        report_page(without, neurons=["org/second-base/1:3"])


def test_snippets_have_the_frame_in_the_middle(result: SimilarityResult) -> None:
    page = report_page(result, audio=waves())
    found = sounds(page)
    cells = re.findall(
        r"<td >[^<]*</td><td >(u\d.wav)</td><td >([\d.]+)</td><td ><audio", section(page)
    )
    assert len(cells) == len(found) > 50
    for (name, seconds), samples in zip(cells, found):
        centre, length = 16_000 * float(seconds), LENGTHS[name]
        at = np.arange(8000) - 4000 + centre
        inside = (at >= 81) & (at < length - 81)  # the time is shown to 10 ms
        assert (samples[(at < -81) | (at > length + 81)] == 0).all()
        assert samples.max() == 1  # scaled
        loudest = min(centre + 3999, length - 1)
        np.testing.assert_allclose(samples[inside], at[inside] / loudest, atol=0.03)


def test_without_audio_the_page_says_so_and_shows_times(result: SimilarityResult) -> None:
    page = report_page(result)
    assert "<audio" not in page
    assert 'class="missing"' in section(page)
    assert "without the audio" in section(page)


def test_what_cannot_be_read_again_is_said(result: SimilarityResult) -> None:
    some = {name: samples for name, samples in waves().items() if name != "u3.wav"}
    some["u4.wav"] = np.full(16_000, np.nan, np.float32)
    page = section(report_page(result, audio=some))
    rows = re.findall(r"<td >(u\d.wav)</td><td >[\d.]+</td><td >(<audio|[^<]*)", page)
    assert {name for name, cell in rows if cell == "not in this audio"} == {"u3.wav", "u4.wav"}
    assert {name for name, cell in rows if cell == "<audio"} == some.keys() - {"u4.wav"}


def test_the_number_of_snippets_is_bounded(
    result: SimilarityResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several neurons whose best match is the same one, which is shown with each.
    matched: dict[str, list[str]] = {}
    for k in range(24):
        neuron = f"org/second-base/1:{k}"
        match = titles(report_page(result, neurons=[neuron]))[0].split(" and ")[1].split(": ")[0]
        matched.setdefault(match, []).append(neuron)
    neurons = max(matched.values(), key=len)
    assert len(neurons) > 1
    everything = len(sounds(report_page(result, waves(), neurons)))
    monkeypatch.setattr(exemplars, "MOST_SNIPPETS", 33)
    page = report_page(result, waves(), [*neurons, neurons[0]])
    shown = len(sounds(page))
    assert 25 < shown <= 33
    assert f"left out of {everything - shown} frames" in section(page)
    assert section(page).count("<td >left out</td>") == everything - shown


def test_what_is_heard_is_shown(result: SimilarityResult) -> None:
    def segments(length: int) -> Segments:
        ends = np.arange(0.1, length / 16_000, 0.1)
        return Segments(ends - 0.1, ends, tuple(f"<{k}>" for k in range(len(ends))))

    known = {name: segments(n) for name, n in LENGTHS.items() if name != "u5.wav"}
    page = section(report_page(result, segments=known))
    rows = re.findall(r"<td >(u\d.wav)</td><td >([\d.]+)</td><td >(.*?)</td>", page)
    assert len(rows) > 50 and all((name == "u5.wav") == (cell == "") for name, _, cell in rows)
    inner = [(float(s), cell) for name, s, cell in rows if cell and 0.3 < float(s) < 0.6]
    assert len(inner) > 5
    for seconds, cell in inner:
        labels = [int(k) for k in re.findall(r"&lt;(\d+)&gt;", cell)]
        assert len(labels) in (5, 6) and labels == list(range(labels[0], labels[-1] + 1))
        bold = re.findall(r"<b>&lt;(\d+)&gt;</b>", cell)
        assert len(bold) == 1 and abs(10 * seconds - int(bold[0]) - 0.5) < 0.6


@pytest.mark.slow
def test_the_page_of_two_base_models_is_small_enough(tmp_path: Path) -> None:
    models = {"a": Shape(13, 768, 12), "b": Shape(13, 768, 12)}
    lengths = {f"{k:03}": 40_000 for k in range(60)}
    result = with_exemplars(random_result(models), lengths, count=20)
    rng = np.random.default_rng(0)
    audio = {name: rng.standard_normal(n).astype(np.float32) / 4 for name, n in lengths.items()}
    path = ss.write_report(result, tmp_path / "report.html", audio=audio)
    assert path.stat().st_size < 8e6
    page = Page(path)
    assert len(sounds(page.source)) == exemplars.MOST_SNIPPETS
    assert all(reference.startswith(("#", "data:")) for reference in page.references)


def test_sound_takes_no_more_than_the_rest_of_the_page_leaves(result: SimilarityResult) -> None:
    room = 20 * 10_900
    content = exemplars.exemplars_section(result, room, ss.open_corpus(waves()))
    silent = exemplars.exemplars_section(result, 0, ss.open_corpus(waves()))
    players = re.findall("<audio.*?</audio>", content)
    assert 10 < len(players) <= 20 and "<audio" not in silent
    assert 0.5 * room < sum(map(len, players)) <= room
