"""The tracks of a comparison: features, functions, arrays and labels, as settings name them."""

from collections.abc import Mapping
from typing import Any

from speechsim_jax.audio.corpus import Corpus
from speechsim_jax.audio.features import FEATURES, array_track, feature_tracks, function_track
from speechsim_jax.audio.label_sources import label_tracks
from speechsim_jax.audio.tracks import Track
from speechsim_jax.errors import UserError
from speechsim_jax.settings import Settings

# Labels that need not be listed where they are given.
_OF_ALL_CORPORA = ("speaker", "gender")


def open_tracks(
    settings: Settings, functions: Mapping[str, Any], corpus: Corpus
) -> tuple[Track, ...]:
    """All tracks, features first.

    Features, the speaker and the gender that are given need not be named as tracks or labels, too.

    Args:
      settings: of the comparison.
      functions: by name, a function(samples, centres) -> [frame, number], or a mapping of
        utterances to arrays [frame, number].
      corpus: the audio, whose classes are those of label tracks.

    Raises:
      UserError: an unknown name, one name for two tracks, or labels that nothing has.
    """
    names = dict.fromkeys((*settings.tracks, *(g for g in settings.given if g in FEATURES)))
    tracks: list[Track] = []
    for name in names:
        source = functions.get(name)
        if source is None:
            tracks += feature_tracks([name])
        elif isinstance(source, Mapping):
            tracks.append(array_track(name, source))
        else:
            tracks.append(function_track(name, source))
    named = {spec.partition(":")[0].strip() for spec in settings.labels}
    of_given = (g for g in settings.given if g in _OF_ALL_CORPORA and g not in named)
    specs = dict.fromkeys((*settings.labels, *of_given))
    if specs:
        tracks += label_tracks(
            tuple(specs), corpus, settings.label_min_share, settings.layout, settings.strict
        )
    seen: set[str] = set()
    for track in tracks:
        if track.name in seen:
            raise UserError(f"two tracks are called {track.name!r}; name one of them otherwise")
        seen.add(track.name)
    return tuple(tracks)
