"""Checkpoints of fairseq, s3prl and the original WavLM: the same encoder as from the HF folder."""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import speechsim_jax as ss
from speechsim_jax.commands.inputs import check_models
from speechsim_jax.models.fairseq_checkpoint import read_training_checkpoint
from speechsim_jax.models.torch_bin import Record, read_torch_bin, read_training_bin
from tests.support.fairseq_writer import (
    Thing,
    checkpoint,
    namespace,
    omegaconf,
    settings,
    state_dict,
    torch_file,
)
from tests.support.parity import LAYOUTS, assert_same_network
from tests.support.paths import DATA
from tests.support.torch_writer import PLAIN, file_of

# Written by torch 2.13 and omegaconf 2.4: a structured configuration of HuBERT with an enumeration
# and an interpolation, `model` = {w: 0..5 as [2, 3], mask_emb: Parameter of two ones}, and among
# its other entries objects of fairseq, a numpy scalar, a set, a defaultdict and a Namespace. Then
# zlib and base 85.
REAL_FILE = (
    "c-o~{37i{c70({sZl}B3`+@@H&XzXaWV2V<?zY>qg@!Ke6iO(Ragt0j(@rvZ-%OS+IMRw+x(W(-K~+S-8*dQsR#3bEL8z"
    "!8A}XM0y~PvWdy@&1ETuy8+fBaAeDDANfA9FdH`$bEXbgp#n?sXcZK1g#E3f6$6&cl0BgLKO@X*ZAwwl-OdKW_BBw~bAk"
    "+Y$0B-w!DbT$X|X*N$=g={2aq#YU<IcXgZ*Lp)}Xx{^kE=&n0r=gLO*Bq6|pebOQQf*B_14lIqn%G#LBEeL&ZFXT=I7#A"
    "#mQ|dwq6ShLKa4_7T2mO4V0v;o-n3FXw6x>hZ%Hdks$`gsQBV|#bV<<45LVGKtb%Gn+df{yPHhZkj3lSvFl(x~wwW%>N="
    "p7$MOc;tvnP^mOmAD}s3w%On$|U#lTKTviJS;%OBpSzmQ2Uvnya^t!#o-0GbeI*vKHvmlP!2bGqt={C~IA)PcNmCQ^_?&"
    "Rp4b<G{R;Idd8veN4aoxm?h?|jAp`Oom_g13&)1_CY@Y#oC{0Bx};CnThdw85Vi&pa$wq2Z99TEwxbptTiQtW5*)9$?bB"
    "!Ii*;P=3Hs~_eU8qGPn6*#9YyM_NnfNl>d1Yv$E_69yauNPf>uB@TiW6XjKm0zB{&tegk5MyUA4h|DW*$t(rGR%L%~&HD"
    "iw@0qb%23^yPZn1WG)GBt`-fSIE%8(vIPDR7NqB(PR@2^-@X`4#d!z6fA9*Bh<8G35A>nos)E*Q7Gj-)o~Qm<wAFuak7S"
    "HW^Cwjp*PH7DMuFi^gd1uQys$`C|Dv7EA^En&T0+8yl|d=*Z@e-k6|M(ta4$1!q$%q?)MhlNednfEO@mHYrF;PQJmB_4n"
    "s1m^%q$nj|qh(*|2WXBG1AM%4xz|=NU*j?85qRnf^={&Z-T9X<=2t1{Acx6SR&5B?5xZmSLkWC{c$(W(9<3`IMGXGDaRo"
    "bfP=Qg-t%)W*1~yZ2)|Pz_$dz&z0f43V1Vu&kKNOvxNY`Rwg*#g``h#feYJe2(}Wzg#m(#WY}IIXhDJn0Rq*bdc$&7bWO"
    "z^xR@yv7hdO6s4k>xC@v<7bbulwgI1xaM~azMNuy*jJsikRiq(*1nVMSgVwFQO-37xZ-r>T|+E}H~Kmrq`n4Xj@Ny!JK6"
    "lAb`DHEt<4(-}jVN}U#s#6l0pEyOGDi>T3KA-J^LkkVmVv*2G0rXKBF7eTmOA-3QaQCuk$Fi>W?MqHuLSH(U#c;fINxb|"
    "$R{kD?U8rW7uO?-vHjL@C=1X0;%-8UG7hKX1Sm79Hctb$L<udFJuCUq1ELt|~;rPALg)4l>H@Prg6TdwKxi<iLr40Kj@o"
    "PlP839ZsC#+J@h6#p#vkPzWp|5h`>Kf<?f_`fN`fV~?Q<WO6bfn@5GOBXgWeadEhvGUH-tGgx!-aR&gyLEPepdka-7;KX"
    "2?cG8In6A=4anf_SSig^gz9LppLM^-h4=dK?{neC8r}N|{`~>?n`HPv1%5Uno^+X`+B+jJ0lV<QQmTY}L{9hMW<I5Eap6"
    "P$DfM9&K2koV^j7Z(x|x_h8esaE3?H9-1bxEm9jJU%)3{WFTPIZyb^>1Id=i;H<-(`^^?k;L&z4z7Jknc<^m75y&&zNdl"
    "ilJa5w#PxnlGA~=d{~(0{wyucle-px^P!D=<Njh#Q^A+WcacVx^eda4)-(6S6uk25A!t_zFrN(uKz{==9@Cy?ZYH8We0Q"
    "rbPvOQ%Y|?IaQC|Koocvy2=2Q9xbMmEeIG7ak5DUi!4JI1wUpbVym2XKBizRkyx)Zf{0RQgg$HXQcpou56kzy~3=dC^;3"
    "G_C3OEpmoN3s8!+16h{f6<!$n>ZSKk-?A>cY?b?xyOjLK_Jl^K={_9ghce{9J}7P{)Rfj{Ehaw!<&jX-~TFOW$cvx$vth"
    "rzJuJ_3HrCZ)A9yAs*GE>j&?;fnNJdDYcZc*>(Ejs#fqEfrp8fS;wv5Gwm`w8&1~Y>Mw!cQbUr~BTC6JOj}ZfMytsvc<k"
    "8Nsf@-X_+8lRI&7S&<}`TDGm(Z(OLew*7bW;T19re4yhglOf`f@B2mZJ@5lYl28ur4U5)FyEz3}G=odo>FfxpV|H{KodS"
    "e$f>!ru=e2D?z~^c+n{@DCm3=+EgMT@;?z4<_mz_$Skh!@m-B<M3~f;y(`jSBC%X<1a5<DMDx=i#mMwI;6BP5EA_(>hT)"
    "Q5)C-u?xCD@ctGj~t$R!~;;rps3ckCd3E#uq?o=?i7Zp><o;K$*x%FFHVQ8isM4HlUM=>qi7Sr%j8k@A@SOoiOp+)l8(i"
    "y4{>X>AwRZ|s`kScSe4E1u7m`*^HxY=IOg5!yOSBh3%SR08-G_YU##SHuy85!B|0>1by5pu*#yqHQW)LNu%$?GvBG0WHH"
    "z3#qqP|T)FO}tNIVn@Xs{JvMrWuAFFp3mb2G>`TsYBozn+ypdREX0ebV>VZpV&j8JrevZgvEf8-EMgBHMTU)Ke~6<=tX)"
    "$1XrQgSJa;kAJ%;AeRzOcO^r$2ZWI2}OaU3})*xp7elg9XwuRIh>aANx&aXcfQ!13dp9?PdJ(-tQ(+DUw!^0(g}5GNCF9"
    "Y0~7f*%?`bEK_O!4aqO^e}t8E>W*BmQg@%RMyTMOX=ng!bpU6kUe&$UIyTijZ?K<;xxXARco^k`T3x{@@0&%ypm^l2R9h"
    "XCKa<$MELd!5=f%7qLtP~2b0*W1*=6EX<I~DXpDt=4(HtK^j*3JA0DxMH&StlIHPvaJ@NrQ$cS#Lj9|sZL=Rm$n5c6^FO"
    "IP8+S|F_L|+~0T*--XdL8W-q8~rh<b1R%3T@P|O18o)!N)TN3rrKMaKie*=e^8heYU0*!~lggxUt%rBZ)y?%<78Q$Hf{Z"
    "8}hT2gJX-eq;RgjVO*@^`)A;LIRv&|msUj%HxzsT9Kn*ci)tEcVAxBK_3VK&+3ntM3+UIg2ri}{*e*7(+VXCTdu=H>mum"
    "z|`lSuS3t)ng&Ss=3ym`{qjeK>4<L-)cDm=EM6~!j6Zl-c76cu$eCpOo*zf;Jb`|BOC#dAMyd*WPP+_*T8b_5Q_Ru0Dby"
    "neDQ*&J`)Ny{ChxPbk+jWu0JTJ!^z)v-T$wk<B=dD~gFT2f1;$fm^9=Ev{7?YhfxucZG?hx|EbUTC2Fb50~ny^^C~#@Se"
    "v!$T`4{i^f-zoMkzj)RX~K~ACnLn~Mq>hl$pPcQ{Lwp@XJ?-(BHdTk=Q<0N445_p#O;`&z<Fe9|4EFd-JXcisC!$Yf%VD"
    "b1e4aYGx(lEa2sYMj4rdQO^5?USjRc%Gb@KFB|3Gh&N58~Tu{KNm<_<z%CQncWjr>|Yej(=rEk)WdJ@X*rGtKlc^-Gjt;"
    "&E}>@h@kl}d;>wg*pcNQt(&;7y7Bt+sel^~!#xz_?i?N(II{3>^N~q|@x%$*;n&|9T2<CiDZswhE}~N+<_B-gop<>BUmS"
    "}21<1>{u_dBsChq~$$P5p4ylNrQj-H<0?pRN(ucxoCw<{j)j&()jeevE{S6{rRHy)2i<MCKmH>sTV<dav2QAe0n){)qX&"
    "fq52Hc5H)@6ffj!R=>WmE8lgLNCAR)j|X}kcCwcn`eg(xog#;1h;@0RVWWtP%2wbt#PngTdIt=&IwiR8MT(dx~sN)rrI)"
    "EYZ<JXYD+p$gH>8<8O-%+%ZIBiJ8Lb2x!PLIIWJUQ8MUUt1X^6}--_wWr}m~qQ`55Y++!P-SL~#kPpjVh+%?}X>n3UgLQ"
    "j{I!aL!nG<h}>&-doO2(uj@dj"
)


def read_layout(layout: str) -> tuple[dict[str, Any], dict[str, np.ndarray], bool]:
    """A fixture's config.json, its tensors without a prefix, and whether samples are normalised."""
    folder = DATA / "parity" / layout
    config = json.loads((folder / "config.json").read_text())
    prefix = f"{config['model_type']}."
    tensors = load_file(folder / "model.safetensors")
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
    return config, tensors, preprocessor["do_normalize"]


def head(size: int) -> dict[str, np.ndarray]:
    return {
        "w2v_encoder.proj.weight": np.ones((5, size), np.float32),
        "w2v_encoder.proj.bias": np.ones(5, np.float32),
    }


def hydra(config, weights, normalize) -> dict:
    task = {"_name": "audio_pretraining", "normalize": normalize, "sample_rate": 16000}
    return checkpoint({"model": settings(config), "task": task}, weights)


def of_omegaconf(config, weights, normalize) -> dict:
    entries = hydra(config, weights, normalize)
    return entries | {"cfg": omegaconf(entries["cfg"])}


def arguments(config, weights, normalize) -> dict:
    values = settings(config)
    args = namespace(**values | {"_name": None, "arch": values["_name"], "normalize": normalize})
    return checkpoint(None, weights, args=args)


def fine_tuned(config, weights, normalize) -> dict:
    """With the settings of pretraining inside, and the encoder beside its head."""
    entries = hydra(config, weights, not normalize)
    model = {
        "_name": f"{config['model_type']}_ctc",
        "w2v_path": "/x.pt",
        "w2v_args": entries["cfg"],
    }
    weights = {f"w2v_encoder.w2v_model.{name}": tensor for name, tensor in weights.items()}
    task = {"normalize": normalize}
    return checkpoint({"model": model, "task": task}, weights | head(config["hidden_size"]))


def fine_tuned_arguments(config, weights, normalize) -> dict:
    args = arguments(config, {}, not normalize)["args"]
    outer = namespace(arch="wav2vec_ctc", w2v_args=args, normalize=normalize)
    weights = {f"w2v_encoder.w2v_model.{name}": tensor for name, tensor in weights.items()}
    return checkpoint(None, weights | head(config["hidden_size"]), args=outer)


def s3prl(config, weights, normalize) -> dict:
    return {
        "task_cfg": {"normalize": normalize, "sample_rate": 16000},
        "model_cfg": settings(config),
        "model_weight": weights,
        "dictionaries_symbols": [["<s>", "a"]],
    }


def original_wavlm(config, weights, normalize) -> dict:
    """Settings without any name, the task's among the model's."""
    cfg = settings(config) | {"normalize": normalize}
    return {
        "cfg": {name: value for name, value in cfg.items() if name != "_name"},
        "model": weights,
    }


WRITERS = [hydra, of_omegaconf, arguments, fine_tuned, fine_tuned_arguments, s3prl]
TRANSFORMERS = [
    name for name in LAYOUTS if name.startswith(("wav2vec2", "hubert", "wavlm", "data2vec"))
]
CASES = [(name, writer) for name in TRANSFORMERS for writer in WRITERS if "no-proj" not in name]
CASES += [(name, original_wavlm) for name in TRANSFORMERS if name.startswith("wavlm")]


@pytest.fixture
def write(tmp_path):
    def write_entries(entries: Any, name: str = "checkpoint_best.pt") -> Path:
        path = tmp_path / name
        path.write_bytes(entries if isinstance(entries, bytes) else torch_file(entries))
        return path

    return write_entries


@pytest.mark.parametrize(("layout", "writer"), CASES)
def test_the_same_encoder_as_from_the_folder(write, layout, writer):
    config, tensors, normalize = read_layout(layout)
    path = write(writer(config, state_dict(config, tensors), normalize))
    encoder = ss.load_encoder(path)
    assert_same_network(encoder, ss.load_encoder(DATA / "parity" / layout))
    assert encoder.name == "checkpoint_best.pt"
    assert encoder.provenance["model_type"] == config["model_type"]
    left_out = any("left out" in note for note in encoder.provenance["notes"])
    assert left_out == (writer in (fine_tuned, fine_tuned_arguments))  # their head


def test_distilhubert(write):
    """Of s3prl: without the norm before the projection, and under other keys."""
    config, tensors, normalize = read_layout("hubert-no-projection-norm")
    values = settings(config)
    values["extractor_conv_feature_layers"] = values.pop("conv_feature_layers")
    weights = state_dict(config, tensors) | {"output_layer.0.weight": np.ones(3, np.float32)}
    path = write({"Config": {"distiller": values}, "Distiller": weights, "Step": 3})
    encoder = ss.load_encoder(path)
    assert not normalize
    assert_same_network(encoder, ss.load_encoder(DATA / "parity" / "hubert-no-projection-norm"))


def data2vec(**changes: Any) -> dict[str, Any]:
    """Entries of a data2vec checkpoint with other settings."""
    config, tensors, normalize = read_layout("data2vec-audio")
    weights = state_dict(config, tensors)
    teacher = {"_ema": {"layers.0.fc1.weight": np.ones(2, np.float32)}}
    final = {"final_proj.weight": np.ones(2, np.float32)}
    model = {k: v for k, v in settings(config, **changes).items() if v is not None}
    cfg = {"model": model, "task": {"normalize": normalize}}
    return checkpoint(cfg, weights | teacher | final)


def test_data2vec_with_its_teacher_and_without_its_name(write):
    path = write(data2vec(_name=None))  # known by its stack of convolutions
    encoder = ss.load_encoder(path)
    assert_same_network(encoder, ss.load_encoder(DATA / "parity" / "data2vec-audio"))
    assert encoder.provenance["notes"] == [
        f"{path}: left out final_proj.weight (not part of the encoder)"
    ]


def base(**changes: Any) -> dict[str, Any]:
    """Entries of a wav2vec 2.0 checkpoint with other settings."""
    config, tensors, normalize = read_layout("wav2vec2-base")
    model = {k: v for k, v in settings(config, **changes).items() if v is not None}
    return checkpoint(
        {"model": model, "task": {"normalize": normalize}}, state_dict(config, tensors)
    )


def test_a_baseline_of_its_architecture(write, caplog):
    path = write(base())
    check_models([str(path), f"random:{path}@1"])
    encoder = ss.load_encoder(f"random:{path}@1")
    assert_same_network(encoder, ss.load_encoder(f"random:{DATA / 'parity' / 'wav2vec2-base'}@1"))
    with pytest.raises(ss.UserError, match="no tokenizer"):
        ss.load_recognizer(path)
    with pytest.raises(ss.UserError, match="has no revision"):
        ss.load_encoder(path, revision="main")


def test_the_digest_is_that_of_the_file(write):
    encoder = ss.load_encoder(write(base()))
    again = ss.load_encoder(write(base(), "x.ckpt").rename(write(base())))
    other = ss.load_encoder(write(base(dropout=0.2)))
    assert encoder.provenance["sha256"] == again.provenance["sha256"]
    assert encoder.provenance["sha256"] != other.provenance["sha256"]


@pytest.mark.parametrize(
    ("task", "layout", "normalize", "said"),
    [
        ({"normalize": True}, "wav2vec2-base", True, None),
        ({"normalize": False}, "wav2vec2-base", False, "samples are not normalised"),
        ({}, "wav2vec2-base", False, "does not say whether"),
        ({}, "wav2vec2-large", True, "does not say whether"),
        (None, "wavlm-base", False, "does not say whether"),
    ],
)
def test_whether_samples_are_normalised(write, task, layout, normalize, said):
    config, tensors, _ = read_layout(layout)
    path = write(checkpoint({"model": settings(config), "task": task}, state_dict(config, tensors)))
    encoder = ss.load_encoder(path)
    assert encoder.config.do_normalize == normalize
    notes = " ".join(encoder.provenance["notes"])
    assert (said or "") in notes and bool(notes) == bool(said)


# --- refused ---


# Pairs of pairs, 60 deep, each part twice: written out they would be 2^60.
BOMB = b"(" * 60 + b"]" + b"q\x00h\x00t" * 60


def changed_weights(change) -> dict[str, Any]:
    entries = base()
    weights = dict(entries["model"])
    change(weights)
    return entries | {"model": weights}


CONV = "conv_feature_layers"
ONE = np.ones(1, np.float32)
REFUSED = {
    "an unknown model": (lambda: base(_name="wav2vec"), "fairseq model 'wav2vec'; only"),
    "a model without a name": (
        lambda: changed_weights(lambda w: None) | {"cfg": {"model": settings_without_name()}},
        "fairseq model None",
    ),
    "an object as a name": (lambda: base(_name=Thing("a.B", {})), "an object of 'a.B'"),
    "a list as a name": (lambda: base(_name=[]), "_name=a list"),
    "conformer": (lambda: base(layer_type="conformer"), "layer_type='conformer'"),
    "quantised input": (lambda: base(quantize_input=True), "quantize_input=True"),
    "a stack of convolutions": (lambda: base(pos_conv_depth=5), "pos_conv_depth=5"),
    "data2vec with one convolution": (lambda: data2vec(pos_conv_depth=1), "pos_conv_depth=1"),
    "data2vec without a depth": (lambda: data2vec(pos_conv_depth=None), "pos_conv_depth=None"),
    "data2vec with a group norm": (
        lambda: data2vec(extractor_mode="default"),
        "extractor_mode='default'",
    ),
    "data2vec with norms first": (lambda: data2vec(layer_norm_first=True), "layer_norm_first=True"),
    "another activation": (lambda: base(activation_fn="relu"), "hidden_act='relu'"),
    "no size": (lambda: base(encoder_layers=None), "lack encoder_layers"),
    "text as a size": (lambda: base(encoder_layers="x"), "num_hidden_layers='x'"),
    "an object as a size": (lambda: base(encoder_layers=Thing("a.B")), "num_hidden_layers"),
    "a large size": (lambda: base(encoder_layers=2**70), "encoder_layers="),
    "pairs of pairs": (lambda: base(encoder_layers=BOMB), "encoder_layers=a tuple"),
    "another mode": (lambda: base(extractor_mode="x"), "extractor_mode='x'"),
    "a dict as a mode": (lambda: base(extractor_mode={}), "extractor_mode=a dict"),
    "no convolutions": (lambda: base(**{CONV: None}), CONV),
    "code for convolutions": (lambda: base(**{CONV: "__import__('os')"}), CONV),
    "too many convolutions": (lambda: base(**{CONV: "[(9,1,1)] * 99"}), CONV),
    "long convolutions": (lambda: base(**{CONV: "[(9,1,1)]+" * 500}), CONV),
    "other sizes": (lambda: base(encoder_ffn_embed_dim=20), "fc1|intermediate_dense"),
    "a missing weight": (
        lambda: changed_weights(lambda w: w.pop("encoder.layers.0.fc1.bias")),
        "1 missing: encoder.layers.0.feed_forward.intermediate_dense.bias",
    ),
    "another weight in the encoder": (
        lambda: changed_weights(lambda w: w.update({"encoder.layers.0.adapter.weight": ONE})),
        "unexpected: encoder.layers.0.adapter.weight",
    ),
    "a weight that is an object": (
        lambda: changed_weights(lambda w: w.update(mask_emb=Thing("a.B"))),
        "mask_emb is an object of 'a.B'",
    ),
    "a weight twice": (
        lambda: changed_weights(lambda w: w.update({"w2v_encoder.w2v_model.mask_emb": ONE})),
        "do not fit|two of its weights",
    ),
    "a name that cannot be printed": (
        lambda: changed_weights(lambda w: w.update({"a\x1b": ONE})),
        "a weight with the name 'a.x1b'",
    ),
    "a pickled module": (lambda: base() | {"model": Thing("a.Model", {})}, "a.Model"),
    "a list of weights": (lambda: base() | {"model": [ONE]}, "a list, not a state dict"),
    "no settings": (lambda: base() | {"cfg": None}, "entries: .*'model'"),
    "settings that are text": (lambda: base() | {"cfg": "x"}, "no settings of its model"),
    "fine-tuned without the settings": (
        lambda: (
            changed_weights(
                lambda w: w.update({f"w2v_encoder.w2v_model.{n}": w.pop(n) for n in list(w)})
            )
            | {"cfg": {"model": {"_name": "wav2vec_ctc", "w2v_args": None}}}
        ),
        "w2v_args",
    ),
    "lightning": (
        lambda: {"state_dict": {"x": ONE}, "hyper_parameters": {}},
        "entries: 'state_dict', 'hyper_parameters'",
    ),
    "a task of s3prl": (lambda: {"Downstream": {}, "Featurizer": {}, "Config": {}}, "upstream"),
    "a state dict": (lambda: {"encoder.x": ONE}, "with the config.json of the model"),
    "nothing": (dict, "entries: none"),
    "a list": (lambda: [ONE], "contains a list"),
    "numbers as names": (lambda: {1: ONE}, "an entry 1"),
    "text": (lambda: b"PK", "wrong first bytes"),
    "an old file": (
        lambda: b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",
        "older than torch 1.6.* save it again with torch.save",
    ),
}


def settings_without_name() -> dict[str, Any]:
    config, _, _ = read_layout("wav2vec2-base")
    return {name: value for name, value in settings(config).items() if name != "_name"}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(write, case):
    entries, words = REFUSED[case]
    path = write(entries())
    with pytest.raises(ss.UserError, match=words) as caught:
        ss.load_encoder(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize("name", ["no.pt", "./no.ckpt", "/no/no.pth"])
def test_a_file_that_is_not_there(name):
    with pytest.raises(ss.UserError, match="there is no such file"):
        ss.load_encoder(name)


def test_settings_inside_settings_end(write):
    inner: dict[str, Any] = {"model": {"_name": "wav2vec_ctc"}}
    for _ in range(10):
        inner = {"model": {"_name": "wav2vec_ctc", "w2v_args": inner}}
    with pytest.raises(ss.UserError, match="without end"):
        ss.load_encoder(write(base() | {"cfg": inner}))


# --- the reader of training checkpoints ---


def test_a_real_file(write):
    entries = read_training_bin(write(zlib.decompress(base64.b85decode(REAL_FILE))))
    weights = entries["model"]
    np.testing.assert_array_equal(weights["w"].array, np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(weights["mask_emb"].array, np.ones(2))
    cfg, more = entries["cfg"], entries["extra_state"]
    assert isinstance(cfg, Record) and cfg.name == "omegaconf.dictconfig.DictConfig"
    assert cfg.state["_content"]["model"].state["_parent"] is cfg  # a cycle
    assert (more["args"].name, more["args"].state["lr"]) == ("argparse.Namespace", [0.1])
    assert (more["seen"].arguments, more["counts"].entries) == (([1, 2],), {"a": 1})
    assert entries["task_state"]["dictionaries"][0].state["symbols"] == ["<s>", "a"]
    assert entries["last_optimizer_state"]["state"][0]["step"] == 3
    assert entries["optimizer_history"][0]["best_loss"].name == "numpy._core.multiarray.scalar"


def test_settings_of_a_real_file(write):
    path = write(zlib.decompress(base64.b85decode(REAL_FILE)))
    found = read_training_checkpoint(path)
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 12}
    sizes |= {"num_attention_heads": 2, "conv_dim": [6] * 7, "feat_extract_norm": "group"}
    assert found.config["model_type"] == "hubert" and found.config.items() >= sizes.items()
    assert found.preprocessor == {"do_normalize": False, "sampling_rate": 16000}
    assert found.tensors.keys() == {"w", "hubert.masked_spec_embed"}


def test_objects_stay_records(write, tmp_path, monkeypatch):
    """Whatever a pickle says of an object, nothing is imported, called or set."""
    monkeypatch.chdir(tmp_path)
    run = ("touch executed",)
    entries = {
        "called": Thing("os.system", None, run, called=True),
        "made": Thing("subprocess.Popen", None, run),
        "state": Thing("x.Y", {"__setstate__": Thing("os.system", None, run, called=True)}),
        "class": Thing("x.Y", {"__class__": "z"}),
        "reduced": Thing("builtins.getattr", (1, 2), ("a", "b"), called=True),
    }
    found = read_training_bin(write(entries))
    assert {type(value) for value in found.values()} == {Record}
    assert [value.name for value in found.values()][:2] == ["os.system", "subprocess.Popen"]
    assert found["called"].arguments == run and found["reduced"].state == (1, 2)
    assert not (tmp_path / "executed").exists()


UNREADABLE = {
    "many arguments": (Thing("x.Y", None, (0,) * 17), "17 arguments"),
    "a tuple of tuples as a key": ({((1,),): 1}, "a key that is a tuple"),
    "a list as a key": (b"}]Ns.", "a key that is a list"),
    "a key twice": (b"}K\x01NsK\x01Ns.", "repeated"),
    "protocol 4": (b"\x80\x04N.", "protocol 4"),
    "INST": (b"(ios\nsystem\n.", "INST"),
    "OBJ": (b"(cos\nsystem\no.", "OBJ"),
    "STACK_GLOBAL": (b"U\x02osU\x06system\x93.", "BINSTRING|STACK_GLOBAL"),
    "EXT1": (b"\x82\x01.", "EXT1"),
    "DUP": (b"N2.", "DUP"),
    "BUILD of a list": (b"]}b.", "garbled"),
    "BUILD of a tensor": (b"", "BUILD"),
    "APPEND to a dict": (b"}Na.", "garbled"),
    "call of a list": (b"])R.", "garbled"),
    "a large memo": (b"Nr\xff\xff\xff\xff.", "memo index"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_pickles_that_are_refused(write, case):
    value, words = UNREADABLE[case]
    if case == "BUILD of a tensor":
        value = PLAIN + b"}b."
    content = file_of(b"\x80\x02" + value) if isinstance(value, bytes) else {"x": value}
    with pytest.raises(ss.UserError, match=words) as caught:
        read_training_bin(write(content))
    assert "\n" not in str(caught.value)


def test_a_state_dict_is_read_as_before(write):
    """Objects are refused in the files of a folder."""
    path = write({"w": Thing("argparse.Namespace", {})})
    with pytest.raises(ss.UserError, match="NEWOBJ"):
        read_torch_bin(path)
