import pytest
import torch
from torch import nn

from fiducial.data.picture_keys import PictureKeys, content_key
from fiducial.training.features import FeatureCache, collate_keyed, weights_digest

KEYS = [content_key(bytes([i])) for i in range(6)]


class Doubling(nn.Module):
    """Two features of an image: its double, and its mean times a weight. Counts the images that it sees."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(3.0), requires_grad=False)
        self.num_seen = 0

    def forward(self, images):
        self.num_seen += len(images)
        return [2 * images, self.weight * images.mean((1, 2, 3))]


@pytest.fixture(autouse=True)
def _cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FIDUCIAL_CACHE", str(tmp_path / "cache"))


def picture(number):
    return torch.full((3, 2, 2), float(number))


def batch_of(tests, goldens, *, unread=()):
    def item(test, golden):
        made = {"test_key": KEYS[test], "golden_key": KEYS[golden]}
        return made | {r: picture(n) for r, n in (("test", test), ("golden", golden)) if n not in unread}

    return collate_keyed([item(*pair) for pair in zip(tests, goldens, strict=True)], ("test", "golden"))


def cache_of(backbone, kind="ram", **options):
    return FeatureCache(backbone, kind, **{"max_mb": 1, **options})


def check(cache, backbone, tests, goldens, **options):
    batch = batch_of(tests, goldens, **options)
    doubled, scaled = cache.features(batch, backbone, "cpu")
    for role, numbers in (("test", tests), ("golden", goldens)):
        place = batch[f"{role}_place"]
        assert torch.equal(doubled[place], torch.stack([2 * picture(n) for n in numbers]))
        assert torch.equal(scaled[place], backbone.weight * torch.tensor([float(n) for n in numbers]))
    assert not doubled.requires_grad
    return batch


class TestCollate:
    def test_every_picture_once(self):
        items = [
            {"test_key": KEYS[t], "golden_key": KEYS[g], "test": picture(t), "golden": picture(g), "row": 0}
            for t, g in ((1, 0), (2, 0), (1, 3))
        ]
        batch = collate_keyed(items, ("test", "golden"))
        assert batch["keys"] == [KEYS[1], KEYS[2], KEYS[0], KEYS[3]]
        assert batch["test_place"].tolist() == [0, 1, 0]
        assert batch["golden_place"].tolist() == [2, 2, 3]
        assert torch.equal(batch["pictures"][batch["picture_place"].index(3)], picture(3))
        assert items == [{"row": 0}] * 3

    def test_without_a_picture(self):
        batch = batch_of([1], [2], unread=(1, 2))
        assert "pictures" not in batch
        assert batch["picture_place"] == []


class TestFeatures:
    @pytest.mark.parametrize("kind", ["ram", "disk"])
    def test_each_picture_is_seen_once(self, kind):
        backbone = Doubling()
        cache = cache_of(backbone, kind)
        check(cache, backbone, [1, 2], [0, 0])
        assert backbone.num_seen == 3
        check(cache, backbone, [2, 4, 1], [0, 5, 5])  # new ones between known ones
        assert backbone.num_seen == 5
        check(cache, backbone, [5, 1], [4, 0], unread=range(6))
        assert backbone.num_seen == 5
        assert (cache.encoded, cache.reused) == (5, 7)
        assert "5 kept in" in cache.report()

    def test_pictures_in_another_order_than_their_keys(self):
        backbone = Doubling()
        check(cache_of(backbone), backbone, [1, 2], [2, 0])

    def test_a_bound_of_nothing(self):
        backbone = Doubling()
        cache = cache_of(backbone, max_mb=0)
        for _ in range(2):
            check(cache, backbone, [1], [0])
        assert backbone.num_seen == 4

    def test_pictures_that_are_kept_are_told_of(self):
        backbone, keys = Doubling(), PictureKeys("", 1000)
        cache = cache_of(backbone, keys=keys)
        check(cache, backbone, [1], [0])
        assert [keys.is_known(key) for key in KEYS] == [True, True, False, False, False, False]
        cache.close()
        assert not keys.is_known(KEYS[0])
        full = cache_of(backbone, keys=keys, max_mb=0)
        check(full, backbone, [1], [0])
        assert not keys.is_known(KEYS[0])

    def test_what_was_made_in_inference_mode_can_be_trained_on(self):
        backbone, layer = Doubling(), nn.Linear(1, 1)
        cache = cache_of(backbone)
        with torch.inference_mode():
            cache.features(batch_of([1], [0]), backbone, "cpu")
        for new in (0, 2):
            _, scaled = cache.features(batch_of([1], [new]), backbone, "cpu")
            layer(scaled[:, None]).sum().backward()


class TestDisk:
    def seen_again(self, first, second, **options):
        check(cache_of(first, "disk"), first, [1], [0])
        cache = cache_of(second, "disk", **options)
        check(cache, second, [1], [0])
        return second.num_seen

    def test_a_later_run_finds_them(self):
        assert self.seen_again(Doubling(), Doubling()) == 0

    def test_other_weights_do_not(self):
        other = Doubling()
        other.weight.fill_(4.0)
        assert self.seen_again(Doubling(), other) == 2

    def test_another_identity_does_not(self):
        assert self.seen_again(Doubling(), Doubling(), identity="bf16-mixed") == 2

    def test_a_folder_that_cannot_be_used(self, tmp_path, caplog):
        (tmp_path / "cache").write_text("a file")
        backbone = Doubling()
        cache = cache_of(backbone, "disk")
        for _ in range(2):
            check(cache, backbone, [1], [0])
        assert backbone.num_seen == 4
        assert "cannot be" in caplog.text

    def test_another_version(self, tmp_path, caplog):
        backbone = Doubling()
        cache = cache_of(backbone, "disk")
        check(cache, backbone, [1], [0])
        cache.close()
        for about in tmp_path.rglob("about.json"):
            about.write_text(about.read_text().replace('"version": 1', '"version": 2'))
        check(cache, backbone, [1], [0])
        assert backbone.num_seen == 4
        assert "another version of this program (2, not 1)): going on without it" in caplog.text


class TestWeights:
    def test_every_tensor_counts(self):
        def norm(**changed):
            made = nn.BatchNorm2d(2)
            for name, value in changed.items():
                getattr(made, name).data.fill_(value)
            return made

        found = {
            weights_digest(norm(**changed))
            for changed in ({}, {"weight": 2}, {"bias": 2}, {"running_var": 2}, {"num_batches_tracked": 2})
        }
        assert len(found) == 5
        assert weights_digest(norm()) == weights_digest(norm())
        assert weights_digest(nn.LayerNorm(2)) != weights_digest(nn.LayerNorm(2, dtype=torch.bfloat16))
