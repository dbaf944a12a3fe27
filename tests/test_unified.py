"""The unified model: untrained it is the ratio detector, and its context alone decides what is normal."""

import numpy as np
import pytest
import torch
from conftest import TINY

from adlib.datasets.demo.products import product
from adlib.images import maps, patches
from adlib.methods.few_shot.losses import balanced_focal_loss
from adlib.methods.few_shot.references import cells_near_and_far, whitening, yardsticks
from adlib.methods.few_shot.unified import Unified, p_values

SMALL = TINY | {"k": 2, "steps": 3, "episodes": 2, "snapshot_every": 3, "shots": [1, 2], "drawn_products": 2}


@pytest.fixture(scope="module")
def fitted(train):
    return Unified(**SMALL).fit(train)


@pytest.fixture(scope="module")
def trained(train):
    method = Unified(**SMALL | {"learning_rate": 0.01, "selection": "last", "pool": [5, 3]})
    return method.train_episodes({"plate": train.iloc[:5]}).fit(train)


@pytest.mark.parametrize("used", [(), ("turned",), ("own",), ("turned", "own")])
def test_untrained_it_is_the_ratio_detector(fitted, test_batch, used):
    """The same numbers from the definition, cell by cell, in float64."""
    method = Unified(**SMALL | {"references": used})
    context = method.condition(test_batch.images[:3])
    described = method.describe(test_batch.images)
    with torch.no_grad():
        logits = method.cells(described, context)
    expected = 0.0
    for feature, memory in zip(described, context, strict=True):
        grid, c = feature.shape[2:], feature.shape[1]
        answer = []
        for query in feature:
            z = (patches.to_rows(query[None]).double() - memory.mean.double()) @ memory.whitening.double()
            distance, nearest = torch.cdist(z, memory.rows.flatten(0, 1).double()).min(1)
            least = distance
            if memory.turned.shape[1]:
                assert "turned" in used
                least = least.minimum(torch.cdist(z, memory.turned.flatten(0, 1).double()).amin(1))
            if "own" in used:
                far = torch.cdist(z, z).masked_fill(~cells_near_and_far(tuple(grid))[1], torch.inf)
                least = least.minimum(far.amin(1))
            yard = memory.delta.flatten().double()[nearest] + 1e-3
            answer.append((least.div(c**0.5).clamp(min=1e-3) / yard).log1p().view(grid))
        expected = expected + maps.enlarge(torch.stack(answer), logits.shape[1:], align_corners=True) / len(described)
    expected = 2.4 * (expected - np.log(2)) - 2.0
    # A tie in the search may take another row with another yardstick; float32 makes that rare.
    assert (logits - expected).abs().median() < 1e-4
    assert ((logits - expected).abs() < 2e-2).float().mean() > 0.98


def test_turned_copies_serve_where_parts_lie_freely():
    """A picture and its quarter turns need them; pictures that all lie the same way do not."""
    method, one = Unified(**SMALL), torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    one = maps.smooth(one.numpy(), 3)
    free = torch.from_numpy(np.stack([np.rot90(one, i, (1, 2)) for i in range(3)]).copy())
    fixed = torch.from_numpy(np.stack([np.clip(one + 0.002 * i, 0, 1) for i in range(3)]))
    assert method.condition(free)[0].turned.shape[1] == 3 * 16 * 16
    assert method.condition(fixed)[0].turned.shape[1] == 0


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
    assert min(memory.delta.min() for memory in alone.context) > 0  # its copies give it a yardstick
    np.testing.assert_allclose(alone.score(test_batch).p_value[-1:], 1 / (4 + 1))
    bare = [memory._replace(normal=memory.normal[:0]) for memory in alone.context]
    assert np.isnan(alone.score(test_batch, bare).p_value).all()


def test_lessons_keep_good_and_defective_queries_apart_and_train_the_head_alone(trained, train):
    lessons, _ = trained.make_pools({"plate": train})
    assert [lesson.category for lesson in lessons] == ["plate", "drawn", "drawn"]
    for lesson in lessons:
        defective = lesson.target.flatten(1).any(1)
        assert 0 < defective.sum() < len(defective) == len(lesson.inputs)
        assert lesson.inputs.isfinite().all()
    seen, *_, valid = trained.make_batch(lessons, 0)
    assert len(seen) == len(valid) == 2 * (3 + 4)
    trained.modules.zero_grad()
    sum(trained.losses(trained.modules, trained.make_batch(lessons, 0), 0).values()).backward()
    assert all(p.grad is not None for p in trained.modules["head"].parameters())
    assert all(p.grad is None for p in trained.backbone.parameters())


def test_balanced_focal_loss_by_hand():
    """One anomalous cell weighs as much as three normal ones; at logit 0 each costs 0.25 log 2."""
    target = torch.tensor([[True, False, False, False]])
    logits = torch.zeros(1, 4)
    assert balanced_focal_loss(logits, target, target | True).item() == pytest.approx(0.25 * np.log(2))
    logits[0, 0] = 50.0
    assert balanced_focal_loss(logits, target, target | True).item() == pytest.approx(0.125 * np.log(2))


def test_drawn_products_are_seeded_and_masks_hold_their_defects():
    good, defective, masks, kinds = product(3, (48, 64))
    again = product(3, (48, 64))
    assert all(np.array_equal(a, b) for a, b in zip(good + defective, again[0] + again[1], strict=True))
    assert good[0].shape == (48, 64, 3)
    assert masks.shape == (len(defective), 48, 64)
    assert masks.any((1, 2)).all()
    assert masks.mean() < 0.2
    assert len({tuple(product(n, (16, 16))[0][0].mean((0, 1))) for n in range(4)}) == 4
    assert len(set(kinds)) > 3


def test_training_moves_the_scores(trained, fitted, test_batch):
    assert {"focal", "dice", "ranking"} <= set(trained.history.losses.columns)
    assert np.abs(trained.score(test_batch).image - fitted.score(test_batch).image).max() > 1e-3
