"""The contract that every method keeps. A new method is tested here without a line written for it."""

import contextlib
import functools
import inspect
import re

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SMALL_SETTINGS, refused, texture, write_image
from safetensors.torch import save_file
from scipy.stats import spearmanr

from adlib import evaluation, images, methods, profiles
from adlib.errors import InputError, TrainingError
from adlib.methods import checkpoints, storage, training
from adlib_book import notebook_jobs

ALL = list(methods.METHODS)
FIELDS = {name: methods.get(name).Settings.__dataclass_fields__ for name in ALL}
EPISODIC = [name for name in ALL if "shots" in FIELDS[name]]  # trained on other products, not in `fit`
TRAINED = [name for name in ALL if "selection" in FIELDS[name] and name not in EPISODIC]
every_method = pytest.mark.parametrize("name", ALL)


def few_steps(name, steps=4, **changes) -> dict:
    """Settings of a training of a few steps that keeps its last weights."""
    episodes = {"episodes": 1, "pool": [4, 2], "shots": [1, 2]}
    settings = SMALL_SETTINGS[name] | {"steps": steps, "selection": "last", "snapshot_every": 0}
    return settings | (episodes if name in EPISODIC else {}) | changes


def learn(method, table, checkpoint=None):
    """Train a method: on the table alone or, where that is learnt on other products, on the table as one of them."""
    if hasattr(method, "train_episodes"):
        method.train_episodes({"plate": table}, checkpoint=checkpoint)
        return method.fit(table)
    return method.fit(table, checkpoint=checkpoint) if checkpoint else method.fit(table)


@contextlib.contextmanager
def watched_steps(monkeypatch, stop=None):
    """The steps whose losses are computed, as a list; at step `stop` the run is killed."""
    steps, whole = [], training.train

    def train(modules, optimizers, make_batch, compute_losses, *rest, **options):
        def counted(modules, batch, step):
            if step == stop:
                raise KeyboardInterrupt
            steps.append(step)
            return compute_losses(modules, batch, step)

        return whole(modules, optimizers, make_batch, counted, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train", train)
        yield steps


def queries(n=2):
    return torch.rand(n, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def fit(train):
    return functools.cache(lambda name: methods.create(name, **SMALL_SETTINGS[name]).fit(train))


UNUSABLE = [
    ("draem", {"image_size": 16}, "image_size 16 is too small"),
    ("draem", {"textures": "/no/such"}, "no such folder"),
    ("dfr", {"window": 65}, "window"),
    ("dfr", {"stages": [2, "relu1_1"]}, "stage"),
    ("few_shot", {"rotations": [0, 45]}, "multiples of 90"),
    ("unified", {"layer_weights": [1.0]}, "layer_weights"),
    ("ulsad", {"image_size": 72}, "multiples of 32, for example 64x64"),
    ("ulsad", {"channels": 900}, "at most 152"),
    ("ulsad", {"quantiles": (0.9, 0.5)}, "rising"),
    ("ulsad", {"context": 20}, "multiple of 16"),
    ("ulsad", {"whiten": "off", "area": 2.0}, "set whiten"),
    ("pagmfr", {"terms": ["mffm"], "fusion": "sum"}, "nothing to fuse"),
    ("pagmfr", {"image_stride": 3}, "power of two"),
    ("pagmfr", {"image_stride": 4}, "finer than the first level's stride 4"),
    ("pagmfr", {"accumulate": 3}, "accumulate 3 must divide batch_size 4"),
    ("pagmfr", {"sampling": "small"}, "set bank to their number"),
    ("pagmfr", {"families": ["perlin"]}, "family 'perlin' is unknown"),
    *(("pagmfr", {name: "/no/such"}, f"no such folder; {name} must be a folder") for name in ("textures", "objects")),
]


@pytest.mark.parametrize(("name", "settings", "said"), UNUSABLE)
def test_settings_that_do_not_fit_each_other_the_backbone_or_the_disk_are_named(train, name, settings, said):
    refused(said, lambda: methods.create(name, **SMALL_SETTINGS[name] | settings).fit(train))


@every_method
def test_a_method_has_frozen_settings_a_notebook_and_its_source_and_fits_tables_alone(name):
    with pytest.raises(AttributeError):
        methods.get(name).Settings().seed = 1
    refused("unknown", methods.create, name, no_such_setting=1)
    arguments = ["self", "table", "validation", "checkpoint"]
    assert list(inspect.signature(methods.get(name).fit).parameters) == arguments[: 4 if name in TRAINED else 3]
    entry, defaults = methods.METHODS[name], vars(methods.get(name).Settings())
    assert notebook_jobs.notebook_path(entry.notebook).is_file()
    planned = {"backbone": entry.backbone, "weights": "auto", "textures": "", "objects": ""}  # by adlib plan
    assert planned == {key: defaults.get(key, value * (key != "backbone")) for key, value in planned.items()}
    assert re.search("arXiv|README", inspect.getmodule(methods.get(name)).__doc__)


@every_method
def test_scores_have_the_promised_shapes(fit, test_batch, name):
    scores = fit(name).score(test_batch)
    size = test_batch.images.shape
    assert scores.image.shape == (size[0],)
    assert scores.map.shape == (size[0], *size[2:])
    assert scores.image.dtype == scores.map.dtype == np.float32
    assert np.isfinite(scores.image).all()
    assert np.isfinite(scores.map).all()


@every_method
def test_a_batch_is_its_images_one_by_one(fit, test_batch, name):
    together = fit(name).score(test_batch)
    for i in range(len(test_batch)):
        alone = fit(name).score(test_batch.images[i : i + 1])
        np.testing.assert_allclose(alone.image[0], together.image[i], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(alone.map[0], together.map[i], rtol=1e-3, atol=1e-3 * together.map.max())


@pytest.mark.parametrize("name", ["patchcore", "few_shot", "padim", "spade"])
def test_defects_stand_out_without_training(fit, test_rows, test_batch, name):
    maxima, bad = fit(name).score(test_batch).map.max(axis=(1, 2)), test_rows.label == 1
    assert maxima[bad].min() > maxima[~bad].max()


SAVED = [(name, {}) for name in ALL]
SAVED += [
    ("glass", {"heads": 3, "image_score": "top"}),
    ("patchcore", {"patch_size": "auto"}),
    ("pagmfr", {"calibrate": "position", "whiten": True, "terms": ["cosine", "colour"]}),
    ("pagmfr", {"calibrate": "position", "whiten": True, "fusion": "sum", "terms": ["colour"]}),
    ("ulsad", {"maps": "auto", "position_wise": "auto"}),
]


@pytest.mark.parametrize(("name", "changes"), SAVED)
def test_saved_and_loaded_is_the_same(fit, train, test_batch, name, changes, tmp_path):
    method = methods.create(name, **SMALL_SETTINGS[name] | changes).fit(train) if changes else fit(name)
    method.save(tmp_path / "model", threshold={"value": 1.0})
    assert storage.read_header(tmp_path / "model")["threshold"] == {"value": 1.0}
    again = methods.load(tmp_path / "model")
    assert type(again) is type(method)
    assert again.settings == method.settings
    for one, other in zip(again.score(test_batch), method.score(test_batch), strict=True):  # p-values, too
        np.testing.assert_array_equal(one, other)
    assert len(again.normal_scores) == len(again.normal_map_maxima) >= 2


@every_method
def test_an_input_need_not_be_square(train, name, tmp_path):
    """What changes below left changes the map there: rows and columns are nowhere mixed up."""
    size = (96, 64)
    # Two steps leave DRAEM's map flat; two clusters are of the whole image.
    more = {"draem": {"steps": 20, "learning_rate": 0.003}, "contrastive": {"clustering": "bank_knn"}}.get(name, {})
    fitted = methods.create(name, **SMALL_SETTINGS[name] | more | {"image_size": size}).fit(train)
    fitted.save(tmp_path / "model")
    inputs = next(images.batches(train.image_path[:1], fitted.resize, 1)).images.repeat(2, 1, 1, 1)
    inputs[1, :, -24:-8, 8:24] = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    maps = fitted.score(inputs).map
    assert maps.shape == (2, *size)
    np.testing.assert_array_equal(methods.load(tmp_path / "model").score(inputs).map, maps)
    change = np.abs(maps[1] - maps[0])
    assert change[-40:, :40].mean() > 1.2 * change[:-40].mean()


@every_method
def test_a_damaged_model_is_one_line(fit, name, tmp_path):
    fit(name).save(tmp_path / "model")
    header, others = storage.read_model(tmp_path / "model")
    scores = {"normal_scores": others.pop("normal_scores")}
    for part, lacking in ((others, "lacks 'normal_scores'"), (scores, r"[^\n]+")):
        save_file(part, storage.tensors_file(tmp_path / "model", header))
        refused(r"^[^\n]+ is not the one that model.json describes; [^\n]+$", methods.load, tmp_path / "model")
        header["tensors_digest"] = storage.digest(part)
        save_file(part, storage.tensors_file(tmp_path / "model", header))
        storage.update_header(tmp_path / "model", tensors_digest=storage.digest(part))
        refused(rf"^model .*model is damaged \({lacking}\); train it again$", methods.load, tmp_path / "model")


@every_method
def test_test_images_and_anomalies_are_refused_in_training(train, test_rows, name):
    method = methods.create(name, **SMALL_SETTINGS[name])
    refused("test image", method.fit, test_rows[test_rows.label == 0])
    refused("anomalous image", method.fit, test_rows[test_rows.label == 1])
    refused("empty", method.fit, test_rows[:0])
    for table, said in ((test_rows[:0], "is empty"), (test_rows[test_rows.label == 1], "an anomalous image")):
        refused(rf"^the validation table .*{said}", method.fit, train, table)


@every_method
def test_what_is_not_fitted_says_so(name, tmp_path):
    method = methods.create(name, **SMALL_SETTINGS[name])
    for use in (lambda: method.save(tmp_path / "model"), lambda: method.score(queries())):
        refused(rf"^this {name} is not fitted; call fit\(table\) first$", use)
    assert not (tmp_path / "model").exists()
    if name in ("ulsad", "dfr", "pagmfr", "draem"):  # they calibrate anew
        refused(r"^[a-z_]+ needs the held-out images of fit; they are not saved", method.use_snapshot, {})


@every_method
def test_what_is_no_stack_of_colour_images_is_one_line(fit, name):
    for wrong in (queries()[:, :1], queries()[0], queries()[:0]):
        refused(r"^[^\n]+ shape [^\n]+; expected [^\n]+$", fit(name).score, wrong)


@pytest.mark.parametrize("name", [name for name in ALL if "backbone" in FIELDS[name]])
def test_a_model_of_other_backbone_weights_is_refused(fit, name, tmp_path):
    fit(name).save(tmp_path)
    storage.update_header(tmp_path, backbone_fingerprint="0")
    refused(r"^[^\n]+ other weights of backbone [^\n]+$", methods.load, tmp_path)


@pytest.mark.parametrize("name", [name for name in ALL if "backbone" in FIELDS[name]])
def test_features_that_are_nan_are_refused(train, name):
    method = methods.create(name, **SMALL_SETTINGS[name])
    owner = method.model.encoder if name == "pagmfr" else method.backbone
    features = owner.forward
    owner.forward = lambda *given: [feature * float("nan") for feature in features(*given)]
    with pytest.raises((InputError, TrainingError), match=r"(?i)^[^\n]*nan[^\n]*$"):
        learn(method, train)


@pytest.mark.parametrize("name", [name for name in ALL if "backbone" in FIELDS[name]])
def test_the_unit_of_the_features_does_not_matter_in_the_laptop_profile(train, test_rows, name):
    """A backbone whose features are a hundred times as long: constants that were made for one length would show."""
    small = {key: value for key, value in few_steps(name, 8).items() if key in FIELDS[name] and key != "stages"}
    small |= {"image_size": 64, "resize": "stretch"} | ({"bank": 8} if "bank" in FIELDS[name] else {})
    settings = profiles.load("laptop")["methods"][name] | small
    found = []
    for factor in (0.1, 10.0):
        method = methods.create(name, **settings)
        owner = method.model.encoder if name == "pagmfr" else method.backbone
        owner.forward = lambda *given, plain=owner.forward, factor=factor: [factor * x for x in plain(*given)]
        found.append(evaluation.evaluate(method.fit(train), test_rows))
    maps = [np.stack(one.anomaly_maps).ravel() for one in found]
    assert spearmanr(*maps).statistic >= 0.999
    assert found[0].metrics["aupro_30"] == pytest.approx(found[1].metrics["aupro_30"], abs=0.01)


@every_method
def test_fit_leaves_the_table_and_the_global_generators_alone(train, name):
    before, state = train.copy(), torch.get_rng_state()
    methods.create(name, **SMALL_SETTINGS[name]).fit(train)
    assert train.equals(before)
    assert torch.equal(torch.get_rng_state(), state)


@every_method
@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_few_images_are_enough(train, test_batch, name, n, tmp_path):
    """Held-out normals from four images on; below, leave-one-out, but for trained networks: they keep the last step."""
    more = [write_image(tmp_path / f"{i}.png", texture(np.random.default_rng(10 + i))) for i in range(2)]
    train = pd.concat([train, train.iloc[:2].assign(image_path=more)]).iloc[:n]
    known, wanted = methods.get(name).Settings.__dataclass_fields__, {"hold_out": 0.15, "selection": "synthetic"}
    changes = {"k": 4} if "shots" in known else {key: value for key, value in wanted.items() if key in known}
    method = methods.create(name, **SMALL_SETTINGS[name] | changes)
    if n == 1 and name in ("ulsad", "contrastive"):  # a network that normalises over images; pairs of images
        method.backbone = None  # refused before any feature is computed
        refused(r"^1 normal training image; [^\n]+: give at least 2$", method.fit, train)
        return
    method.fit(train)
    trained = "selection" in changes
    expected = {1: 0, 2: 0 if trained else 2, 4: 4 if name == "patchcore" or "k" in changes else 2}
    expected[8] = 8 if name == "patchcore" else 4 if "k" in changes else 2
    assert len(method.normal_scores) == len(method.normal_map_maxima) == expected[n]
    assert np.isfinite(method.normal_scores).all()
    if trained:  # and a record says so
        assert method.settings.selection == ("last" if n < 4 else "synthetic")
    method.save(tmp_path / "model")
    found = methods.load(tmp_path / "model").score(test_batch)
    np.testing.assert_array_equal(found.map, method.score(test_batch).map)
    assert np.isfinite(found.map).all()


@pytest.fixture(scope="module")
def plain(train):
    """An uninterrupted training of four steps at which nobody looks."""
    return functools.cache(lambda name: learn(methods.create(name, **few_steps(name)), train))


# -- what is trained by steps -----------------------------------------------------------------------------------------

RESUMED = [(name, {}) for name in [*TRAINED, *EPISODIC]]
RESUMED += [
    ("glass", {"heads": 2, "bank": 3, "average": 0.9, "cell_share": 0.5}),
    ("ulsad", {"noise": 0.5, "hidden": 0.5, "schedule": "cosine"}),
    ("draem", {"bank": 4, "average": 0.9}),
]


@pytest.mark.parametrize(("name", "changes"), RESUMED)
def test_a_killed_training_goes_on_to_the_same_numbers(train, plain, tmp_path, monkeypatch, name, changes):
    monkeypatch.setattr(checkpoints, "EVERY", 2)
    settings, file = few_steps(name, **changes), tmp_path / "c.pt"
    whole = learn(methods.create(name, **settings), train) if changes else plain(name)
    with watched_steps(monkeypatch, stop=3) as steps, pytest.raises(KeyboardInterrupt):
        learn(methods.create(name, **settings), train, file)
    assert steps == [0, 1, 2]
    assert torch.load(file, weights_only=True)["step"] == 2
    with watched_steps(monkeypatch) as steps:
        resumed = learn(methods.create(name, **settings), train, file)
    assert steps == [2, 3]
    assert resumed.history.losses.equals(whole.history.losses)
    np.testing.assert_array_equal(resumed.normal_scores, whole.normal_scores)
    resumed.save(tmp_path / "model")
    for method in (resumed, methods.load(tmp_path / "model")):
        np.testing.assert_array_equal(method.score(queries()).map, whole.score(queries()).map)
    rate = "learning_rate"
    others = [({rate: 0.123}, train, rate), *([({}, train.iloc[1:], "training images")] if name in EPISODIC else [])]
    for change, table, said in others:
        with pytest.raises(InputError, match=rf"^checkpoint .*c\.pt was made with {said} [^\n]+$"):
            learn(methods.create(name, **settings | change), table, file)


AUTO = {"noise": 0.5, "hidden": 0.3, "maps": "auto", "position_wise": "auto"}  # chosen on what is looked at


@pytest.mark.parametrize(("name", "changes"), [*((name, {}) for name in TRAINED), ("ulsad", AUTO)])
def test_looking_changes_no_number_and_snapshots_can_be_put_back(train, plain, name, changes):
    looks = {"snapshot_every": 1}
    plain = methods.create(name, **few_steps(name, **changes)).fit(train) if changes else plain(name)
    seen = methods.create(name, **few_steps(name, **looks, **changes)).fit(train)
    assert len(plain.history.validation) < len(seen.history.validation) == seen.history.selected_step == 4
    assert seen.history.losses.equals(plain.history.losses)
    np.testing.assert_array_equal(seen.normal_scores, plain.normal_scores)
    assert [step for step, _ in seen.history.snapshots] == [1, 2, 3, 4]
    if name == "pagmfr":
        assert {part.split(".")[0] for part in seen.history.gradients.part} == {"mfrm", "mffm", "fusion"}
        assert seen.history.memory.step.tolist() == [1, 2, 3, 4]
        assert seen.preparation_s > 0 <= seen.history.loading_share < 1
    last = seen.score(queries()).map
    np.testing.assert_array_equal(last, plain.score(queries()).map)
    for _, states in (seen.history.snapshots[0], seen.history.snapshots[-1]):
        seen.use_snapshot(states)
        assert np.array_equal(seen.score(queries()).map, last) is (states is seen.history.snapshots[-1][1])
    np.testing.assert_array_equal(seen.normal_scores, plain.normal_scores)


@pytest.mark.parametrize(
    ("name", "when"),
    [(name, "at step 1") for name in [*TRAINED, *EPISODIC]]
    + [(name, when) for name in ("pagmfr", "draem") for when in ("before the first step", "after the last step")],
)
def test_out_of_memory_is_one_line_that_names_what_can_be_turned(train, monkeypatch, name, when):
    def full(*_given, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    module = __import__(methods.METHODS[name][0], fromlist=["x"])
    owner, inner = {
        "before the first step": (getattr(module, "Pairs", None), "_make_bank"),
        "at step 1": (torch.Tensor, "backward"),
        "after the last step": (module, "collect"),
    }[when]
    method = methods.create(name, **few_steps(name, **({"bank": 4} if "bank" in FIELDS[name] else {})))
    monkeypatch.setattr(owner, inner, full)
    with pytest.raises(TrainingError, match=f"^[^\n]+: memory ran out {when}; [^\n]+$") as caught:
        learn(method, train)
    knobs = re.findall(r"(?:lower|raise|switch on) (\w+)", str(caught.value))
    assert "image_size" in knobs
    assert set(knobs) <= set(FIELDS[name])
    assert bool({"batch_size", "episodes"} & {*knobs}) is (when == "at step 1")  # outside the steps there is no batch
    assert ("accumulate" in knobs) is (when == "at step 1" and "accumulate" in FIELDS[name])


@pytest.mark.parametrize("name", [*TRAINED, *EPISODIC])
def test_mixed_precision_trains_and_leaves_a_method_of_float32(train, name):
    method = learn(methods.create(name, **few_steps(name, steps=2, precision="bf16")), train)
    assert np.isfinite(method.history.losses.total).all()
    scores = method.score(queries())
    assert (scores.map.dtype, bool(np.isfinite(scores.map).all())) == (np.float32, True)


@pytest.mark.parametrize("name", TRAINED)
def test_selection_keeps_the_best_step_and_a_checkpoint_belongs_to_its_images(train, name, tmp_path, monkeypatch):
    first, second = train.iloc[:3], train.iloc[3:]
    settings = SMALL_SETTINGS[name] | {"selection": "synthetic", "snapshot_every": 1}
    monkeypatch.setattr(checkpoints, "EVERY", 1)
    file = tmp_path / "c.pt"
    method = methods.create(name, **settings).fit(first, second, file)
    history = method.history
    assert len(method.normal_scores) == len(second)  # no share of the first is put aside
    assert len(history.validation) == len(history.losses) > 1
    assert history.selected_step == history.validation.step[history.validation.score.idxmax()]
    for other, what in (((train.iloc[1:3], second), "training"), ((first, second.iloc[:2]), "validation")):
        refused(rf"c\.pt was made with {what} images", methods.create(name, **settings).fit, *other, file)
