"""The unified model: untrained it is the ratio detector, and its context alone decides what is normal."""

import numpy as np
import pytest
import torch
from conftest import TINY

from adlib.images import maps, patches
from adlib.methods.few_shot import episodic_training
from adlib.methods.few_shot.unified import Unified, p_values, whitening, yardsticks

SMALL = TINY | {"k": 2, "steps": 3, "episodes": 2, "snapshot_every": 3, "shots": [1, 2]}


@pytest.fixture(scope="module")
def fitted(train):
    return Unified(**SMALL).fit(train)


@pytest.fixture(scope="module")
def trained(train, fitted):
    pool = episodic_training.build_pool(train, fitted.describe, fitted.resize, seed=0, n_normals=6, n_styles=4)
    method = Unified(**SMALL | {"learning_rate": 0.01, "selection": "last"})
    return method.train_episodes(None, pools=[pool, pool]).fit(train)


def test_untrained_it_is_the_ratio_detector(fitted, test_batch):
    described = fitted.describe(test_batch.images)
    logits = fitted.cells(described, fitted.context)
    # The same numbers from the definition, cell by cell, in float64.
    expected = 0.0
    for feature, memory in zip(described, fitted.context, strict=True):
        z = (patches.to_rows(feature).double() - memory.mean.double()) @ memory.whitening.double()
        distance, nearest = torch.cdist(z, memory.rows.double()).min(1)
        rho = distance / z.shape[1] ** 0.5 / (memory.delta.double()[nearest] + 1e-3)
        grid = rho.log1p().view(len(feature), *feature.shape[2:])
        expected = expected + maps.enlarge(grid, logits.shape[1:], align_corners=True) / len(described)
    expected = 2.4 * (expected - np.log(2)) - 2.0
    # A tie in the search may take another row with another yardstick; float32 makes that rare.
    assert (logits - expected).abs().median() < 1e-6
    assert ((logits - expected).abs() < 1e-4).float().mean() > 0.99


def test_yardsticks_by_hand():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    image = torch.tensor([0, 0, 1])
    # Squared distances to the third row, the only one of another image: 0.8 and 0.4; from it, the nearer: 0.4.
    expected = (torch.tensor([0.8, 0.4, 0.4]) / 2).sqrt()
    shrunk = 0.5 * expected + 0.5 * expected[1]
    torch.testing.assert_close(yardsticks(rows, image, rows, image), shrunk)


def test_whitening_makes_normal_differences_alike_in_all_directions():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(5, 5, generator=generator)
    differences = torch.randn(4000, 5, generator=generator) @ mixing
    white = differences @ whitening(differences, 1e-5)
    torch.testing.assert_close(white.T @ white / len(white), torch.eye(5), atol=2e-3, rtol=0)
    # With the identity alone it is a scale: mean variance one, directions as they were.
    scale = whitening(differences, 1.0)
    torch.testing.assert_close(scale, scale[0, 0] * torch.eye(5))
    assert (differences @ scale).square().mean().item() == pytest.approx(1, rel=1e-4)


def test_scores_do_not_depend_on_scale_and_mixing_of_the_channels(fitted, test_batch):
    """Directions in which normal patches vary are divided out, whatever units the backbone gives them."""
    method = Unified(**SMALL | {"whiten": 1e-6})
    described = method.describe(test_batch.images)
    mixing = [torch.randn(f.shape[1], f.shape[1], generator=torch.Generator().manual_seed(0)) for f in described]
    mixed = [torch.einsum("bchw,cd->bdhw", f, m) for f, m in zip(described, mixing, strict=True)]
    with torch.no_grad():
        plain = method.cells(described, method._remember([f[:3] for f in described]))
        other = method.cells(mixed, method._remember([f[:3] for f in mixed]))
    # The nearest patch before whitening, which the differences come from, may be another one.
    assert np.corrcoef(plain[3:].flatten(), other[3:].flatten())[0, 1] > 0.9


def test_contexts_decide(trained, test_batch, test_rows):
    """Swapping two contexts swaps the scores, and a defect that the support shows is no defect."""
    bad = np.flatnonzero(test_rows.label)
    good_context = trained.condition(test_batch.images[:3])
    bad_context = trained.condition(test_batch.images[np.append([0, 1, 2], bad[1:4])])  # other pictures of defects
    query = test_batch.images[bad[:1]]
    first = trained.score(query.repeat(2, 1, 1, 1), contexts=[good_context, bad_context]).image
    second = trained.score(query.repeat(2, 1, 1, 1), contexts=[bad_context, good_context]).image
    np.testing.assert_array_equal(first, second[::-1])
    assert first[0] > first[1] + 1


def test_a_query_in_the_support_scores_lowest(fitted, test_batch):
    context = fitted.condition(test_batch.images[:3])
    scores = fitted.score(test_batch, context).image
    assert scores[:3].max() < 0  # better than a support image judged by the others
    assert scores[:3].max() < scores[3:].min()


def test_one_support_image_has_a_yardstick(fitted, test_batch):
    context = fitted.condition(test_batch.images[:1])
    again = fitted.condition(test_batch.images[[0, 0]])
    for one, two in zip(context, again, strict=True):
        assert one.delta.min() > 0
        assert torch.equal(one.delta, two.delta)


def test_image_scores_count_from_the_support_judged_by_itself(fitted, test_batch):
    three = test_batch.images[:3]
    context = fitted.condition(three)
    with torch.no_grad():
        cells = fitted.cells(fitted.describe(three), context)
    assert context[0].usual > fitted.image_logits(cells).max()  # itself in the memory, an image has distance 0
    query = fitted.score(test_batch.images[3:4], context).image[0]
    with torch.no_grad():
        plain = fitted.image_logits(fitted.cells(fitted.describe(test_batch.images[3:4]), context))
    assert query == pytest.approx(float(plain - context[0].usual), abs=1e-5)


def test_p_values_count_normals(fitted, test_batch):
    scores = fitted.score(test_batch)
    n = len(fitted.normal_scores)
    expected = [(np.sum(fitted.normal_scores >= s) + 1) / (n + 1) for s in scores.image]
    np.testing.assert_allclose(scores.p_value, expected, rtol=1e-6)
    assert scores.map.min() >= 0
    assert scores.map.max() <= 1


def test_p_values_belong_to_their_context(fitted, test_batch, test_rows):
    """A context made by hand has the support's own scores to count, not those of the images that `fit` saw."""
    labels = test_rows.label.to_numpy()
    good, bad = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    context = fitted.condition(test_batch.images[good[:3]])
    assert context[0].normal.mean().item() == pytest.approx(0, abs=1e-5)
    by_hand = fitted.score(test_batch, context).p_value
    np.testing.assert_allclose(by_hand[bad], 0.25)  # above all three
    fresh = Unified(**SMALL)
    np.testing.assert_allclose(fresh.score(test_batch, fresh.condition(test_batch.images[good[:3]])).p_value, by_hand)
    both = fitted.score(test_batch.images[bad[:1]].repeat(2, 1, 1, 1), contexts=[fitted.context, context]).p_value
    assert both[0] == fitted.score(test_batch.images[bad[:1]]).p_value[0] != both[1]


def test_p_values_without_normals(test_batch, train):
    """One image and nothing else: its changed copies are the normals; an empty list of them gives no p-value."""
    found = p_values(np.array([0.5, 2.0]), np.array([1.0, 0.5, 0.0], np.float32))
    np.testing.assert_allclose(found, [3 / 4, 1 / 4])
    assert np.isnan(p_values(np.zeros(2), np.zeros(0))).all()
    alone = Unified(**SMALL | {"k": 1}).fit(train.iloc[:1])
    assert len(alone.normal_scores) == 0
    np.testing.assert_allclose(alone.score(test_batch).p_value[-1:], 1 / (4 + 1))
    bare = [memory._replace(normal=memory.normal[:0]) for memory in alone.context]
    assert np.isnan(alone.score(test_batch, bare).p_value).all()


def test_gradients_reach_projection_and_head_only(fitted, train):
    pool = episodic_training.build_pool(train, fitted.describe, fitted.resize, seed=0, n_normals=6, n_styles=2)
    method = Unified(**SMALL)
    torch.nn.init.constant_(method.modules["head"].layers[-1].weight, 0.1)
    torch.nn.init.constant_(method.projection.mlps[0][2].weight, 0.01)
    episode = episodic_training.draw(pool, np.random.default_rng(1), shots=(2,), clean=0.0)
    rows = [episodic_training.draw_rows(np.random.default_rng(0), len(f), f.shape[2:]) for f in episode.support]
    sum(method.episode_losses(method.modules, episode, rows).values()).backward()
    assert all(p.grad is not None for p in method.modules["head"].parameters())
    assert all(p.grad is not None for p in method.projection.mlps.parameters())
    assert all(p.grad is None for p in method.backbone.parameters())


def test_training_moves_the_scores(trained, fitted, test_batch):
    assert {"focal", "dice", "contrastive", "image", "calibration"} <= set(trained.history.losses.columns)
    assert np.abs(trained.score(test_batch).image - fitted.score(test_batch).image).max() > 1e-3


def test_a_cluster_without_support_adds_one_and_the_rest_nothing(train):
    """Half of the query's cells lie where the support is, half far away."""
    method = Unified(**SMALL | {"clustering": "agglomerative"}).fit(train)
    rows = 0.1 * torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
    rows[:40, 0] += 1
    rows[40:, 1] += 1
    memory = method.context[0]._replace(rows=rows[8:40])
    added = method._clustered(torch.cat([rows[:8], rows[40:]]), memory, (1, 4, 4))
    assert added.flatten().tolist() == [0.0] * 8 + [1.0] * 8
