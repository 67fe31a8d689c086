"""Data sets of the hub, out of a cache and without a network."""

from contextlib import nullcontext
from types import SimpleNamespace

import datasets
import pytest

from clara.corpus import Reading, hub, list_sources
from clara.corpus.hub import HubName, have_rows_in_common, load_tables
from clara.corpus.listing import Origin
from clara.data import DataError
from clara.sync.origins import as_text, check_origins, from_text
from tests.clara.corpus.made_datasets import COMMIT, cached, without_network

TRAIN = {"text": ["The harbour is open.", "Anna is the master."], "year": [2011, 2019]}
TEST = {"text": ["The crane is broken."], "year": [2024]}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with a data set of two splits."""
    monkeypatch.chdir(tmp_path)
    without_network(monkeypatch, tmp_path / "cache")
    cached(tmp_path / "cache", "harbour/news", {"train": TRAIN, "test": TEST})
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("datasets:squad", HubName("squad")),
        ("datasets:a/b.c-d", HubName("a/b.c-d")),
        ("datasets:a/b@main:en", HubName("a/b", "main", "en")),
        ("datasets:a/b::train", HubName("a/b", None, None, "train")),
        (
            "hf://datasets/a/b@refs/pr/1:20231101.de:train",
            HubName("a/b", "refs/pr/1", "20231101.de", "train"),
        ),
        ("squad", None),
        ("datasets/squad", None),
    ],
)
def test_names(given, found):
    assert HubName.parsed(given) == found


@pytest.mark.parametrize(
    "given",
    [
        *("datasets:", "datasets:a/b/c", "datasets:../b", "datasets:a@", "datasets:a:b:c:d"),
        *("datasets:a::train[:10]", "datasets:a b", "datasets:/etc", "hf://datasets/"),
        *("datasets:a\n", "datasets:a:\x1b[31m", "datasets:a@refs/../../b", "datasets:a@/b"),
    ],
)
def test_what_is_no_name(given):
    with pytest.raises(DataError, match="names no data set of the hub; give datasets:NAME"):
        list_sources([given])


def test_rows_of_all_splits_or_one(cache):
    reading = Reading(["datasets:harbour/news"])
    assert reading.survey().documents == 3
    found = list(reading)
    assert [(each.id, each.text, each.metadata) for each in found] == [
        ("news/1", TRAIN["text"][0], {"year": 2011}),
        ("news/2", TRAIN["text"][1], {"year": 2019}),
        ("news/3", TEST["text"][0], {"year": 2024}),
    ]
    assert found[2].where == "datasets:harbour/news: test/news-test.arrow: row 1"
    assert {(each.kind, each.source) for each in found} == {("dataset", "news")}
    (one,) = Reading([f"press=hf://datasets/harbour/news@{COMMIT[:9]}:default:test"])
    assert (one.id, one.source, one.text) == ("press/1", "press", TEST["text"][0])


def test_configurations(cache):
    cached(cache, "harbour/news", {"train": TEST}, "nl")
    (found,) = Reading(["datasets:harbour/news:nl"])
    assert found.text == TEST["text"][0]
    with pytest.raises(DataError, match="multiple 'harbour/news' configurations in the cache"):
        list_sources(["datasets:harbour/news"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("harbour/other", "cannot be taken from the cache .*/cache, and HF_HUB_OFFLINE forbids"),
        ("harbour/news:nl", "Couldn't find cache for harbour/news for config 'nl'"),
        ("harbour/news::dev", "has no split 'dev', there are: test, train$"),
        ("harbour/news@abc", f"the hub cannot be asked, and .* is commit {COMMIT}$"),
        ("csv", "datasets reads files with this name"),
        ("buckets/b", "datasets reads files with this name"),
        ("local", "there is a local 'local', which datasets may read in its place"),
    ],
)
def test_what_cannot_be_had(cache, tmp_path, given, message):
    (tmp_path / "local").mkdir()
    with pytest.raises(DataError, match=message) as raised:
        list_sources([f"datasets:{given}"])
    assert str(raised.value).startswith(f"datasets:{given}: ")
    assert "\n" not in str(raised.value)


def test_a_hub_that_does_not_answer(cache, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)

    def unreachable(*arguments, **options):
        raise ConnectionError("Couldn't reach\nthe hub")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with pytest.raises(DataError) as raised:
        load_tables(HubName("a/b"), "datasets:a/b")
    assert str(raised.value) == (
        "datasets:a/b: cannot be loaded: Couldn't reach the hub; HF_HUB_OFFLINE=1 takes what the "
        f"cache {cache} holds without asking the hub"
    )


def test_code_of_a_data_set_is_never_trusted(cache, monkeypatch):
    """Releases before 4 run it if they are told to, or by a setting of the environment."""
    real, seen = datasets.load_dataset_builder, {}

    def older(path, name=None, revision=None, trust_remote_code=None):
        seen.update(trust_remote_code=trust_remote_code)
        return real(path, name, revision=revision)

    monkeypatch.setattr(datasets, "load_dataset_builder", older)
    assert len(load_tables(HubName("harbour/news"), "x")) == 2
    assert seen == {"trust_remote_code": False}


def test_files_that_lie_elsewhere_are_not_read(cache, tmp_path, monkeypatch):
    """The card of a data set may name any path as one of its files."""
    secret = tmp_path / "secret.csv"
    secret.write_text("text\nA secret.\n")
    local = datasets.load_dataset_builder("csv", data_files=str(secret))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *given, **options: local)
    with pytest.raises(DataError, match=r"x: has '/.* among its files"):
        load_tables(HubName("a/b"), "x")
    assert not list(cache.glob("csv*"))


@pytest.mark.parametrize(
    ("file", "fine"),
    [
        ("hf://datasets/a/b@0123/t.csv", True),
        ("zip://t.csv::hf://datasets/a/b@0123/t.zip", True),
        ("zip://hf://t.csv::/etc/t.zip", False),
        ("file:///etc/passwd", False),
        ("https://127.0.0.1/t.csv", False),
    ],
)
def test_where_files_lie(file, fine):
    builder = SimpleNamespace(config=SimpleNamespace(data_files={"train": [file]}))
    with nullcontext() if fine else pytest.raises(DataError, match="does not lie on the hub"):
        hub._require_on_hub(builder, "x")


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install '.\[datasets\]'"):
        list_sources(["datasets:squad"])


def test_a_damaged_cache_is_a_failure(cache):
    (file,) = cache.rglob("news-train.arrow")
    reading = Reading(["datasets:harbour/news"])
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r": news-train\.arrow: cannot be read as an Arrow stream"):
        list(reading)
    assert reading.failures == 1
    file.unlink()
    with pytest.raises(DataError, match=r": news-train\.arrow: No such file"):
        list(reading)


def test_sources_with_rows_in_common(cache, tmp_path):
    listing = list_sources(["datasets:harbour/news"])
    origin = listing.origins["news"]
    assert origin == Origin("datasets:harbour/news")
    assert from_text(as_text(origin)) == origin
    check_origins(listing, {"news": origin, "b": Origin("datasets:harbour/news:nl")})
    check_origins(listing, {"cwd": Origin(str(tmp_path))})
    with pytest.raises(
        DataError, match="'news' is datasets:other/news in the index, not datasets:har"
    ):
        check_origins(listing, {"news": Origin("datasets:other/news")})
    with pytest.raises(DataError, match="is in two sources, 'a' and 'news'"):
        check_origins(listing, {"a": Origin("datasets:harbour/news::train")})
    assert not have_rows_in_common("datasets:a::train", "datasets:a::test")
