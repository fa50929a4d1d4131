"""Labels through a worker: the same as the network's own, as the referee's, and in every mode."""

from __future__ import annotations

import re

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import lively, small_spec, with_counters
from PIL import Image

import deeplabzoo
from deeplabzoo.cli import main, types
from deeplabzoo.core.reference import forward as referee
from deeplabzoo.core.spec import make_spec
from deeplabzoo.errors import BackendError, ImageError, SpecError, WeightsError
from deeplabzoo.inference import (
    CRF_PRESETS,
    IMAGENET,
    PALETTES,
    InferenceOptions,
    predict_probabilities,
    restore_labels,
)
from deeplabzoo.inference.label_sets import ADE20K_TF
from deeplabzoo.inference.memory import peak_bytes
from deeplabzoo.inference.plane import prepare
from deeplabzoo.models import DTYPES
from deeplabzoo.parity.report import CHECKS
from deeplabzoo.prediction import Predictor, logits_alone, predict
from deeplabzoo.weights_converter.canonical import Canonical, Card
from deeplabzoo.weights_converter.convert import write_model

MODES = {"scales": (0.75, 1.25), "flip": True, "window": 65}


def photo(height=97, width=133):
    """Seeded, and smooth enough that labels come in patches."""
    small = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def model(**options):
    made = lively(small_spec(**options))
    return Canonical(made.spec, made.weights, Card(IMAGENET.to_dict(), tuple("abcde")))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"output": {"align_corners": True}},
        {"output": {"resize": "features"}},
        {"output": {"resize": "features", "align_corners": True}},
        {"output": {"values": "labels"}, "aux": True},
        {"output": {"size": "feature"}, "aux": True},
    ],
    ids=str,
)
def test_labels_are_the_networks_own(options, requested, worker):
    """The network resizes by itself here; the predictor stops before that and does the rest in numpy."""
    built = model(**options)
    full = built.spec.replace(output=built.spec.output.replace(values="logits"))
    runner = worker(requested[0])
    runner.load(Canonical(full, {}).graph, built.weights)
    x, placement = prepare(photo(), IMAGENET)
    expected = restore_labels(runner.forward(x)["out"], placement)
    with Predictor(built, backend=requested[0]) as predictor:
        made = predictor.labels(photo())
    assert made.dtype == np.uint8
    assert len(np.unique(made)) > 1
    assert (made != expected).mean() < 1e-3


def test_every_backend_gives_the_referees_probabilities(backend):
    built = model(arch="v3", output={"align_corners": True})
    graph, weights = logits_alone(built)

    def forward(x):
        return referee(graph, weights, x)["out"]

    expected = predict_probabilities(
        forward, photo(), IMAGENET, align_corners=True, options=InferenceOptions.from_dict(MODES)
    )
    with Predictor(built, backend=backend, **MODES) as predictor:
        made = predictor.probabilities(photo())
        labels = predictor.labels(photo())
    assert made.shape == (5, 97, 133)
    np.testing.assert_allclose(made, expected, atol=1e-4)
    assert (labels != expected.argmax(axis=0)).mean() < 1e-3


def test_what_a_smaller_graph_does_not_need():
    whole = with_counters(model(aux=True))
    graph, weights = logits_alone(whole)
    assert not any(name.startswith("aux.") for name in weights)
    assert set(graph.parameters()) <= set(weights)
    assert len(graph.outputs) == 1
    odd = Canonical(whole.spec, {**whole.weights, "auks.weight": np.zeros(1)}, whole.card)
    assert "auks.weight" in logits_alone(odd)[1]


def test_foreign_weights_are_still_refused(requested):
    whole = model(aux=True)
    odd = Canonical(whole.spec, {**whole.weights, "auks.weight": np.zeros(1)}, whole.card)
    with pytest.raises((WeightsError, BackendError, deeplabzoo.errors.WorkerError), match="auks"):
        Predictor(odd, backend=requested[0])


def test_a_photo_too_large_for_memory_goes_through_windows(requested):
    built, image = model(), photo(300, 420)
    graph, _ = logits_alone(built)
    limit = peak_bytes(graph, 265, 265)
    notes = []
    with Predictor(built, backend=requested[0], memory_limit=limit, notes=notes.append) as predictor:
        fallen_back = predictor.labels(image)
        assert len(notes) == 1
        predictor.labels(image[:200, :200])  # this one fits
    assert re.fullmatch(
        r"an input of 300 x 420 pixels needs about [\d.]+ MB in one piece, and [\d.]+ MB are there: labelled in windows of 265 x 265 instead",
        notes[0],
    )
    assert len(notes) == 1
    with Predictor(built, backend=requested[0], window=265) as predictor:
        np.testing.assert_array_equal(fallen_back, predictor.labels(image))
        assert (predictor.options.window, predictor.options.overlap) == (265, 1 / 3)
    with (
        Predictor(built, backend=requested[0], memory_limit=limit) as predictor,
        pytest.warns(match="in windows of 265"),
    ):
        predictor.labels(image)
    with (
        Predictor(built, backend=requested[0], memory_limit=1000) as predictor,
        pytest.raises(ImageError, match="0 MB of memory for a network that needs about"),
    ):
        predictor.labels(image)


def test_a_crf_follows(requested):
    pytest.importorskip("pydensecrf")
    built = model()
    with (
        Predictor(built, backend=requested[0]) as plain,
        Predictor(built, backend=requested[0], crf="v2_resnet101") as refined,
    ):
        expected = CRF_PRESETS["v2_resnet101"].refine(photo(), plain.probabilities(photo()))
        np.testing.assert_allclose(refined.probabilities(photo()), expected, atol=1e-5)
        np.testing.assert_array_equal(refined.labels(photo()), expected.argmax(axis=0))
        assert (plain.labels(photo()) != refined.labels(photo())).any()


def test_predict_takes_the_options(requested):
    whole, modes = (deeplabzoo.predict(model(), photo(), backend=requested[0], **options) for options in ({}, MODES))
    assert whole.shape == modes.shape == (97, 133)
    assert (whole != modes).any()


def test_a_single_logit_is_background_and_foreground(requested):
    built = lively(small_spec(num_classes=1))
    hand = Canonical(built.spec, built.weights, Card(IMAGENET.to_dict(), ("hand",)))
    truth = np.zeros((97, 133), np.uint8)
    with Predictor(hand, backend=requested[0]) as predictor:
        assert (predictor.classes, predictor.num_classes) == (("background", "hand"), 2)
        probabilities = predictor.probabilities(photo())
        np.testing.assert_array_equal(predictor.labels(photo()), probabilities[1] > 0.5)
        assert next(predictor.evaluate([(photo(), truth)])).sum(axis=1).tolist() == [truth.size, 0]


def test_void_is_the_data_sets(requested):
    """TensorFlow's ADE20K counts from 1 and does not judge label 0."""
    built = lively(small_spec(num_classes=151))
    named = Canonical(built.spec, built.weights, Card(IMAGENET.to_dict(), ADE20K_TF.classes))
    truth = np.zeros((97, 133), np.uint8)
    truth[:10] = 5
    with Predictor(named, backend=requested[0]) as predictor:
        assert next(predictor.evaluate([(photo(), truth)])).sum() == 10 * 133
    with Predictor(built, backend=requested[0]) as predictor:
        assert next(predictor.evaluate([(photo(), truth)])).sum() == truth.size


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"scales": []}, "scales"),
        ({"scales": (1, 1)}, "none twice"),
        ({"fusion": "median"}, "fusion = 'median': expected one of mean, max"),
        ({"window": -3}, "window = -3"),
        ({"overlap": 1}, "overlap = 1"),
        ({"crf": "v9"}, "unknown crf 'v9'"),
        ({"memory_limit": 0}, "memory_limit = 0: expected a whole number of bytes"),
        ({"memory_limit": 2.5}, r"memory_limit = 2\.5"),
    ],
)
def test_wrong_options_start_no_worker(options, match, monkeypatch):
    monkeypatch.setattr("deeplabzoo.prediction.Worker", lambda *_, **__: pytest.fail("a worker was started"))
    with pytest.raises(SpecError, match=match) as caught:
        Predictor(model(), **options)
    assert "\n" not in str(caught.value)


def test_the_help_names_what_the_library_knows():
    assert tuple(CRF_PRESETS) == types.CRF_NAMES
    assert types.PALETTE_NAMES == PALETTES
    assert types.CHECK_NAMES == CHECKS
    assert types.DTYPE_NAMES == DTYPES
    text = CliRunner().invoke(main, ["predict", "--help"]).output
    for word in ("v2_resnet101", "--scales", "--flip", "--fusion", "--window", "--overlap", "--memory-limit", "ade20k"):
        assert word in text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prediction")
    write_model(model(), folder / "m.safetensors")
    (folder / "data").mkdir()
    Image.fromarray(photo()).save(folder / "data" / "one.png")
    truth = np.random.default_rng(1).integers(0, 5, (97, 133)).astype(np.uint8)
    Image.fromarray(truth).save(folder / "data" / "one_mask.png")
    Image.fromarray(photo(300, 420)).save(folder / "large.png")
    return folder


def test_the_command_line_takes_the_options(requested, folder, tmp_path):
    model_options = ["--weights", str(folder / "m.safetensors"), "--backend", requested[0]]
    modes = ["--scales", "0.75,1.25", "--flip", "--window", "65"]
    done = CliRunner().invoke(
        main, ["predict", str(folder / "data" / "one.png"), *model_options, *modes, "--output", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.stderr
    assert "wrote 3 pictures" in done.stderr
    with (
        Image.open(tmp_path / "out" / "one_labels.png") as labels,
        Predictor(model(), backend=requested[0], **MODES) as predictor,
    ):
        np.testing.assert_array_equal(np.asarray(labels), predictor.labels(photo()))
    with Image.open(tmp_path / "out" / "one_legend.png") as legend:
        assert legend.mode == "RGB"
    done = CliRunner().invoke(main, ["evaluate", "--data", str(folder / "data"), *model_options, *modes])
    assert done.exit_code == 0, done.stderr
    assert "mIoU" in done.stdout


def test_the_command_line_tells_of_windows(requested, folder, tmp_path):
    options = ["--weights", str(folder / "m.safetensors"), "--backend", requested[0], "--output", str(tmp_path)]
    enough = peak_bytes(logits_alone(model())[0], 257, 257) // 1_000_000 + 1
    done = CliRunner().invoke(main, ["predict", str(folder / "large.png"), *options, "--memory-limit", str(enough)])
    assert done.exit_code == 0, done.stderr
    assert re.search(
        r"an input of 300 x 420 pixels needs about .* labelled in windows of 2\d\d x 2\d\d instead", done.stderr
    )


@pytest.mark.parametrize(
    ("words", "code", "match"),
    [
        (["--scales", "1,x"], 2, "'1,x': expected numbers with commas between"),
        (["--scales", "0"], 2, "scales"),
        (["--scales", "1,1"], 2, "none twice"),
        (["--overlap", "1"], 2, "overlap"),
        (["--window", "0"], 2, "window"),
        (["--fusion", "sum"], 2, "fusion"),
        (["--crf", "v9"], 2, "v2_resnet101"),
        (["--palette", "pet"], 2, "cityscapes"),
        (["--palette", "ade20k"], 1, "palette 'ade20k' for a model of 5 classes: expected 150 or 151"),
        (["--memory-limit", "0"], 2, "memory-limit"),
    ],
)
def test_the_command_line_refuses(words, code, match, requested, folder, tmp_path):
    options = ["--weights", str(folder / "m.safetensors"), "--backend", requested[0], "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(main, ["predict", str(folder / "data" / "one.png"), *options, *words])
    assert done.exit_code == code
    assert match in done.stderr
    assert len(done.stderr.strip().splitlines()[-1]) > 10
    assert not list((tmp_path / "out").glob("*"))


def test_options_that_do_not_exist():
    with pytest.raises(SpecError, match=r"unknown option of predict 'scale'.*did you mean 'scales'"):
        predict("model.safetensors", np.zeros((9, 9, 3), np.uint8), scale=(1.0,))


def test_photos_need_three_channels(requested):
    with pytest.raises(SpecError, match="in_channels = 4: photos have 3 channels"):
        Predictor(lively(small_spec(in_channels=4)), backend=requested[0])


def test_what_is_too_small_for_the_network(requested):
    """An unpadded stem and exit: told in the photo's own size, for the smallest scale and for windows."""
    spec = make_spec("v3", backbone={"name": "xception", "width": 0.05}, aspp={"channels": 4}, num_classes=3)
    with Predictor(lively(spec), backend=requested[0], scales=(0.3, 1.0)) as predictor:
        with pytest.raises(
            ImageError, match="photo of 100 x 120 is shown to the network as 30 x 36, which is too small"
        ):
            predictor.labels(np.zeros((100, 120, 3), np.uint8))
        with pytest.raises(ImageError, match="photo of type NoneType"):
            predictor.labels(None)


def test_a_window_that_does_not_fit_is_made_smaller(requested):
    lines = []
    model = lively(small_spec())
    photo = np.random.default_rng(0).integers(0, 256, (700, 300, 3), np.uint8)
    limit = 30_000_000
    with Predictor(model, backend=requested[0], window=5000, memory_limit=limit, notes=lines.append) as predictor:
        predictor.labels(photo)
        predictor.labels(photo)
    assert len(lines) == 2  # once a size
    assert lines[0] == "a window of 5000 covers the whole prepared input of 700 x 300: there is but one"
    assert "labelled in windows of" in lines[1]
