"""Few-shot similarity: golden values of AnomalyGPT's branch, the support, training that starts at the detector."""

import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, refused, texture, write_image

from adlib import images
from adlib.images import maps, to_tensor
from adlib.methods.few_shot import episodic_training, support_images
from adlib.methods.few_shot.few_shot import FewShot
from adlib.methods.few_shot.unified import Unified

SMALL = TINY | {"stages": [2, 3], "k": 2, "steps": 2, "episodes": 2, "snapshot_every": 1, "shots": [1, 2]}


@pytest.fixture(scope="module")
def fitted(train):
    return FewShot(**SMALL).fit(train)


@pytest.fixture(scope="module")
def pool(train, fitted):
    pictures = episodic_training.paint(train, fitted.resize, seed=0, n_normals=6, n_styles=4)
    return episodic_training.describe_pictures(pictures, fitted.describe)


@pytest.mark.parametrize("name", ["case_0_k1", "case_1_k2", "case_2_k4"])
def test_golden_map_and_score(golden, name):
    file = golden(f"fewshot/{name}")
    unit = torch.nn.functional.normalize
    query, normals = unit(torch.tensor(file["query"]), dim=-1), unit(torch.tensor(file["normals"]), dim=-1)
    similarity = torch.stack(
        [support_images.nearest_similarity(q, n.flatten(0, 1)) for q, n in zip(query, normals, strict=True)]
    )
    grid = similarity.mean(0).view(1, 16, 16)
    np.testing.assert_allclose(grid[0], file["similarity_16"], rtol=0, atol=1e-6)
    anomaly_map = 1 - maps.enlarge(grid, (224, 224), align_corners=True)[0]
    step = int(np.ceil(224 / len(file["map_sub"])))
    np.testing.assert_allclose(anomaly_map[::step, ::step], file["map_sub"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(anomaly_map[-1], file["map_last_row"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(anomaly_map[:, -1], file["map_last_col"], rtol=0, atol=1e-6)
    assert anomaly_map.max().item() == pytest.approx(float(file["score"]), abs=1e-6)


def test_support_is_seeded_distinct_and_apart_from_the_held_out(train):
    first, held_out = support_images.choose_support(train, 3, seed=1)
    again, _ = support_images.choose_support(train, 3, seed=1)
    assert list(first.image_path) == list(again.image_path)
    assert not set(first.image_path) & set(held_out.image_path)
    assert len(first) + len(held_out) == len(train)


def test_a_support_larger_than_the_table_is_the_table(train, capsys):
    chosen, held_out = support_images.choose_support(train, 9, seed=0)
    assert (len(chosen), len(held_out)) == (6, 0)
    assert capsys.readouterr().out == "k 9: there are 6 different normal images, and all of them are the support\n"


def test_duplicate_pictures_count_once(tmp_path, train):
    pixels = texture(np.random.default_rng(5))
    paths = [write_image(tmp_path / f"{i}.png", pixels) for i in range(3)]
    table = train.iloc[:3].assign(image_path=paths)
    assert [len(part) for part in support_images.choose_support(table, 2, seed=0)] == [1, 0]
    stack = torch.rand(2, 3, 8, 8)[[0, 1, 0, 1, 1]]
    assert torch.equal(support_images.distinct(stack), stack[:2])


def test_a_query_from_the_support_scores_zero(fitted, train):
    chosen, _ = support_images.choose_support(train, 2, seed=0)
    batch = next(images.batches(chosen.image_path, fitted.resize, 2))
    scores = fitted.score(batch)
    assert np.abs(scores.map).max() < 1e-5
    assert len(fitted.support_ids) == 2
    assert fitted.normal_scores.min() > 0.01
    grown = copy.copy(fitted)
    grown.add(train)
    assert grown.score(next(images.batches(train.image_path, fitted.resize, 6))).map.max() < 1e-5
    assert len(grown.support_ids) == 8


@pytest.mark.parametrize("cls", [FewShot, Unified])
def test_order_and_copies_of_the_support_change_nothing(cls, train, test_batch):
    fitted, stack = cls(**SMALL).fit(train), test_batch.images[:3]
    plain, other = fitted.condition(stack), fitted.condition(stack[[2, 0, 1, 0]])
    for one, two in zip(fitted.score(stack, plain)[:2], fitted.score(stack, other)[:2], strict=True):
        np.testing.assert_allclose(one, two, atol=1e-3 if cls is Unified else 1e-5)


def test_rotations_are_exact_and_refused_where_orientation_is_the_defect(train):
    views = support_images.rotated(torch.rand(1, 3, 4, 4), (0, 90, 180, 270))
    assert torch.equal(torch.rot90(views[1], 3, (1, 2)), views[0])
    turned = FewShot(**SMALL | {"rotations": [0, 90]})
    assert len(turned.fit(train).context[0].rows) == 2 * 2 * 8 * 8  # two images, two views, stride 8
    refused("hide defects of orientation in category 'metal_nut'", turned.fit, train.assign(category="metal_nut"))


def test_bad_supports_are_one_line(fitted):
    for shape in ((2, 3, 32, 64), (2, 1, 64, 64), (0, 3, 64, 64)):
        refused("expected \\(k, 3, 64, 64\\)", fitted.condition, torch.zeros(shape))


def test_categories_to_train_on_are_needed_and_as_many_images_as_shots(train):
    method = FewShot(**SMALL | {"shots": [50], "selection": "last", "snapshot_every": 0})
    refused("category 'plate' has 4 normal images", method.train_episodes, {"plate": train})
    refused("no category to train on", method.train_episodes, {})


def test_cells_by_coverage():
    mask = np.zeros((1, 8, 8))
    mask[0, :4, :4] = 1  # a whole cell
    mask[0, 4:, :1] = 1  # a quarter of a cell
    coverage = episodic_training.cell_means(mask, (2, 2))
    target, valid = episodic_training.cell_targets(coverage)
    assert target[0].tolist() == [[True, False], [False, False]]
    assert valid[0].tolist() == [[True, True], [False, True]]
    small, _ = episodic_training.cell_targets(torch.tensor([[[0.1, 0.2], [0.0, 0.0]]]))
    assert small[0].tolist() == [[False, True], [False, False]]
    assert not episodic_training.cell_targets(torch.zeros(1, 2, 2))[0].any()


def test_episodes_keep_the_query_out_of_its_support(pool):
    for seed in range(60):
        episode = episodic_training.draw(pool, np.random.default_rng(seed), shots=(1, 2, 4), clean=0.3)
        query, supports = episode.query[0], episode.support[0]
        assert (supports - query).flatten(1).abs().amax(1).min() > 1e-6
        assert (episode.coverage.max() > 0) == (episode.kind == "defect")
        if episode.kind != "clean":
            places = np.ndindex(len(pool.styles), pool.hosts.shape[1])
            style, j = next(place for place in places if torch.equal(pool.defective[0][place], query))
            host = pool.normal[0][pool.hosts[style, j]]
            assert not any(torch.equal(host, other) for other in supports)


def test_cell_metrics_by_hand():
    """Two clean images and one with a defect of one cell that scores highest; the line is the highest clean cell's."""
    cells = np.array([np.full((2, 2), 0.1), np.full((2, 2), 0.1), [[0.9, 0.8], [0.0, 0.0]]])
    masks = np.zeros((3, 2, 2), bool)
    masks[2, 0, 0] = True
    judge = SimpleNamespace(masks=masks.repeat(4, 1).repeat(4, 2), labels=np.array([0, 0, 1]))
    metrics = episodic_training.cell_metrics(cells.repeat(4, 1).repeat(4, 2), judge, (2, 2))
    assert metrics["cell_ap"] == metrics["clean_share"] == 1
    # Above the line: the true cell and one other; 12 cells in all.
    assert metrics["cell_f1"] == pytest.approx(2 / 3)
    assert metrics["cell_iou"] == pytest.approx(1 / 2)
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 20 / 21) / 2)


def test_judges_show_images_that_neither_pools_nor_supports_hold(train, fitted):
    """By default a share of each product; or all of products left out, by a support of their own."""
    pools, products = fitted.make_pools({"one": train, "two": train})
    assert [len(pool.normal[0]) for pool in pools] == [4, 4]
    assert [product.judge.labels.tolist() for product in products] == [[0, 1, 0, 1]] * 2  # two images, twice each
    assert not any(
        (image == product.support).all() for product in products for image in to_tensor(product.judge.images)
    )
    pools, (product,) = fitted.make_pools({"one": train}, {"two": train})
    assert (len(pools[0].normal[0]), len(product.support), len(product.judge.images)) == (6, 2, 8)
    last = dataclasses.replace(fitted.settings, selection="last", snapshot_every=0)  # nobody looks
    assert episodic_training.make_pools({"one": train}, None, list, fitted.resize, last)[1] == []
    refused("at least 2 different normal images", fitted.make_pools, {"one": train}, {"two": train.iloc[:1]})


def test_an_anchor_keeps_length_in_the_comparison():
    """By hand: two short patches at a right angle are alike with an anchor, two long ones are not."""
    method = FewShot(**SMALL | {"anchor": 1.0, "centre": False})
    rows = torch.tensor([[0.1, 0.0], [0.0, 0.1], [3.0, 0.0], [0.0, 3.0]])
    level = torch.tensor(1.0)
    z = torch.nn.functional.normalize(method.prepare(rows, torch.zeros(2), level), dim=1)
    assert (z[0] @ z[1]).item() == pytest.approx(1 / 1.01)
    assert (z[2] @ z[3]).item() == pytest.approx(1 / 10)
    assert FewShot(**SMALL).channels == method.backbone.channels


def test_training_starts_at_the_detector_and_leaves_the_backbone(train, fitted, pool, tmp_path):
    query = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    method = FewShot(**SMALL | {"learning_rate": 0.0, "snapshot_every": 1})
    method.train_episodes({"one": train, "two": train}).fit(train)
    np.testing.assert_array_equal(method.score(query).map, fitted.score(query).map)
    assert method.history.selected_step == 0  # nothing was better than the untrained detector
    assert method.history.validation.step.tolist() == [0, 1, 2]
    assert [step for step, _ in method.history.snapshots] == [0, 1, 2]

    trained = FewShot(**SMALL | {"learning_rate": 0.01, "selection": "last", "snapshot_every": 1})
    trained.train_episodes(None, pools=[pool, pool]).fit(train)
    assert trained.backbone.fingerprint == fitted.backbone.fingerprint
    assert np.abs(trained.score(query).map - fitted.score(query).map).max() > 1e-5
    assert {"focal", "dice", "contrastive"} <= set(trained.history.losses.columns)
    twin = FewShot(**SMALL | {"learning_rate": 0.01, "selection": "last"})
    twin.train_episodes(None, pools=[pool, pool]).fit(train)
    np.testing.assert_array_equal(twin.score(query).map, trained.score(query).map)
    twin.use_snapshot(trained.history.snapshots[0][1])
    np.testing.assert_array_equal(twin.score(query).map, fitted.score(query).map)

    trained.save(tmp_path)
    other = FewShot.load(tmp_path).fit(train.iloc[:3])  # another support, the same weights
    np.testing.assert_array_equal(other.score(query).map, trained.fit(train.iloc[:3]).score(query).map)


@pytest.mark.parametrize("cls", [FewShot, Unified])
@pytest.mark.parametrize(
    ("backbone", "stages"),
    [("resnet18", (2, 3)), ("swin_tiny_patch4_window7_224", (1, 2)), ("tf_efficientnet_lite0", (1, 4))],
)
def test_any_pyramid_serves(cls, backbone, stages, train):
    """Stages of a CNN and of a transformer with their own grids; untrained weights, so only form and self-match."""
    settings = {"backbone": backbone, "stages": stages, "weights": "random", "image_size": 64, "k": 2}
    method = cls(**settings)
    chosen, _ = support_images.choose_support(train, 3, seed=0)
    stack = support_images.read_images(chosen.image_path, method.resize)
    context = method.condition(stack[:2])
    assert [m.rows.shape[-1] for m in context] == list(method.backbone.channels)
    scores = method.score(stack, context)
    assert scores.map.shape == (3, 64, 64)
    assert scores.image[:2].max() < scores.image[2]


def test_windows_at_the_border_count_zeros():
    flat = support_images.describe([torch.ones(1, 2, 4, 4)], window=3, layer_norm=False)[0][0, 0]
    assert flat[1, 1] == 1
    assert flat[0, 1].item() == pytest.approx(6 / 9)
    assert flat[0, 0].item() == pytest.approx(4 / 9)


@pytest.mark.parametrize("cls", [FewShot, Unified])
def test_a_batch_of_several_products_is_its_images_one_by_one(cls, test_batch):
    """Each image has its own context; swapping two contexts swaps two scores and nothing else."""
    method, stack = cls(**SMALL), test_batch.images
    one, other = method.condition(stack[:3]), method.condition(1 - stack[:2])  # its negatives: another product
    queries, contexts = stack[[4, 4, 5]], [one, other, other]
    mixed = method.score(queries, contexts=contexts)
    for i, context in enumerate(contexts):
        alone = method.score(queries[i : i + 1], context)
        for together, single in zip(mixed, alone, strict=True):
            np.testing.assert_allclose(together[i], single[0], rtol=1e-4, atol=1e-5)
    swapped = method.score(queries, contexts=[other, one, other])
    np.testing.assert_allclose(swapped.image[[1, 0, 2]], mixed.image, rtol=1e-4, atol=1e-5)
    assert abs(mixed.image[0] - mixed.image[1]) > 0.01
    refused("2 contexts for 3 images", method.score, queries, contexts=[one, other])
