import json

import pytest

from clara.training.plot import plot_run

RECORDS = [
    {
        "step": step,
        "loss": 5.0 / step,
        "ce": 4.0 / step,
        "recall@1": step / 20,
        "learning_rate": 1e-4,
        "grad_norm_generator": 1.0,
        "tokens_per_second": 900.0,
    }
    for step in range(1, 11)
] + [{"step": 10, "eval_loss": 1.0}]


@pytest.fixture
def log(tmp_path):
    def go(records=RECORDS, cut=0):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / "log.jsonl").write_text(text[: len(text) - cut], encoding="utf-8")
        return tmp_path

    return go


def drawn(file):
    """Its pixels as rows of brightness."""
    image = pytest.importorskip("matplotlib.image").imread(file)
    return image[..., :3].mean(2)


@pytest.mark.parametrize("cut", [0, 7])
def test_curves(log, tmp_path, cut):
    plot_run(log(cut=cut), tmp_path / "curves.png")
    data = (tmp_path / "curves.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    pixels = drawn(tmp_path / "curves.png")
    assert 0.001 < (pixels < 0.95).mean() < 0.5  # lines and labels on white


def test_only_what_was_logged_has_a_panel(log, tmp_path):
    plot_run(log(), tmp_path / "all.png")
    plot_run(log([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]), tmp_path / "one.png")
    assert drawn(tmp_path / "one.png").shape[0] < drawn(tmp_path / "all.png").shape[0]


@pytest.fixture
def axes(monkeypatch):
    """Axes of the figure that was drawn last."""
    figures = pytest.importorskip("matplotlib.figure")
    made = []
    save = figures.Figure.savefig

    def kept(figure, *arguments, **options):
        save(figure, *arguments, **options)
        made[:] = figure.axes

    monkeypatch.setattr(figures.Figure, "savefig", kept)
    return made


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100, 12_345])
def test_the_axes_show_whole_steps(log, tmp_path, axes, steps):
    plot_run(log([{**RECORDS[0], "step": step} for step in (1, steps)]), tmp_path / "curves.png")
    assert len(axes) == 6
    for axis in axes:
        low, high = axis.get_xlim()
        ticks = [tick for tick in axis.get_xticks() if low <= tick <= high]
        assert 1 <= len(ticks) <= 9
        assert all(tick == int(tick) for tick in ticks)
        assert low < 1 <= steps < high


def test_an_evaluation_is_told_from_what_it_evaluates(log, tmp_path, axes):
    plot_run(log(), tmp_path / "curves.png")
    loss, evaluated = axes[0].get_lines()
    assert (loss.get_label(), evaluated.get_label()) == ("loss", "eval_loss")
    assert loss.get_color() == evaluated.get_color()
    assert loss.get_linestyle() != evaluated.get_linestyle()
    assert loss.get_marker() != evaluated.get_marker()


def test_what_cannot_be_drawn(log, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"it has no log\.jsonl"):
        plot_run(tmp_path, tmp_path / "curves.png")
    with pytest.raises(ValueError, match="nothing is logged yet"):
        plot_run(log([]), tmp_path / "curves.png")
    log()
    monkeypatch.setattr("clara.training.plot.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package matplotlib"):
        plot_run(tmp_path, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
