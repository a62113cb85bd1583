"""`speechsim contrast`: a claim about a finished result, in two lines."""

import pytest

from speechsim_jax.errors import UserError
from tests.support.clustered import clustered_result
from tests.support.commands import assert_mistake, call


@pytest.fixture(scope="module")
def result():
    return clustered_result()


@pytest.fixture(scope="module")
def workdir(result, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    result.save(folder / "result.nc")
    return folder


def test_a_difference(result, workdir, capsys):
    cells = ("--cells=a/3,b/1", "--others=a/3,b/2")
    for place in (workdir, workdir / "result.nc"):
        ended = call(capsys, "contrast", str(place), "lincka", *cells)
        assert (ended.code, ended.err) == (0, [])
        assert ended.out.splitlines() == [
            "lincka of a/3 with b/1",
            "less that of a/3 with b/2",
            str(result.contrast("lincka", ("a/3", "b/1"), ("a/3", "b/2"))),
        ]


def test_a_mean_of_several(result, workdir, capsys):
    ended = call(capsys, "contrast", f"--result={workdir}", "--measure=maxcorr",
                 "--cells=a/1,b/1,a/2,b/2")  # fmt: skip
    mean = result.contrast("maxcorr", [("a/1", "b/1"), ("a/2", "b/2")])
    assert ended.out.splitlines() == ["maxcorr of a/1 with b/1, a/2 with b/2", str(mean)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.nc", "lincka", "--cells=a/1,b/1"], "none.nc: no such result file"),
        (["{workdir}", "lincka"], "--cells"),
        (["{workdir}", "--cells=a/1,b/1"], "--measure"),
        (["{workdir}", "linkca", "--cells=a/1,b/1"], "no measure 'linkca'"),
        (["{workdir}", "lincka", "--cells=a/1,b/1,a/2"], "pairs of labels X,Y"),
        (["{workdir}", "lincka", "--cells=a/1,b/1", "--others=a/1"], "pairs of labels X,Y"),
        (["{workdir}", "lincka", "--cells=a/1,b/11"], "did you mean 'b/1'?"),
        (["{workdir}", "lincka", "a/1", "--cells=a/1,b/1"], "unexpected argument 'a/1'"),
    ],
)
def test_mistakes(workdir, capsys, arguments, words):
    assert_mistake(call(capsys, "contrast", *(a.format(workdir=workdir) for a in arguments)), words)


@pytest.mark.parametrize("cells", [0.5, 1, "a/1", ("a/1", "b/1", "a/2"), {("a/1", "b/1")}])
def test_what_is_no_cell(result, cells):
    for given in ((cells,), (("a/1", "b/1"), cells)):
        with pytest.raises(UserError, match="expected pairs"):
            result.contrast("lincka", *given)
