import json

import pytest

from clara.training.plot import joined, plot_runs
from clara.training.settings import GROUPS

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
    plot_runs([log(cut=cut)], tmp_path / "curves.png")
    data = (tmp_path / "curves.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    pixels = drawn(tmp_path / "curves.png")
    assert 0.001 < (pixels < 0.95).mean() < 0.5  # lines and labels on white


def test_only_what_was_logged_has_a_panel(log, tmp_path):
    plot_runs([log()], tmp_path / "all.png")
    plot_runs([log([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}])], tmp_path / "one.png")
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
    plot_runs([log([{**RECORDS[0], "step": step} for step in (1, steps)])], tmp_path / "curves.png")
    assert len(axes) == 6
    for axis in axes:
        low, high = axis.get_xlim()
        ticks = [tick for tick in axis.get_xticks() if low <= tick <= high]
        assert 1 <= len(ticks) <= 9
        assert all(tick == int(tick) for tick in ticks)
        assert low < 1 <= steps < high


def test_an_evaluation_is_told_from_what_it_evaluates(log, tmp_path, axes):
    plot_runs([log()], tmp_path / "curves.png")
    loss, evaluated = axes[0].get_lines()
    assert (loss.get_label(), evaluated.get_label()) == ("loss", "eval_loss")
    assert loss.get_color() == evaluated.get_color()
    assert loss.get_linestyle() != evaluated.get_linestyle()
    assert loss.get_marker() != evaluated.get_marker()


def controls(step):
    found = {"step": step, "eval_exact_match": 0.5, "eval_loss": 1.0, "eval_loss_none": 3.0}
    found |= {"eval_exact_match_none": 0.1, "eval_exact_match_text": 0.7, "eval_loss_text": 1.0}
    for rate in (16, 4):
        found[f"eval_exact_match@{rate}"] = 1 / rate + step / 100
        found[f"eval_exact_match_other@{rate}"] = 0.1
        found[f"eval_loss_memory@{rate}"] = 1.5
        found[f"eval_loss_other@{rate}"] = 3.5
        found[f"eval_recall@1@{rate}"] = 0.3
        found[f"eval_recall@5@{rate}"] = 0.6
    return found


def test_controls_have_a_colour_each_and_rates_a_line(log, tmp_path, axes):
    plot_runs([log([*RECORDS, controls(4), controls(8)])], tmp_path / "curves.png")
    panels = {axis.get_title(): axis.get_lines() for axis in axes}
    lines = {line.get_label(): line for line in panels["exact match of held-out answers"]}
    assert list(lines) == [
        "right memory, rate 4",
        "right memory, rate 16",
        "another's memory, rate 4",
        "another's memory, rate 16",
        "no memory",
        "text",
    ]
    right = lines["right memory, rate 4"]
    assert list(right.get_xdata()) == [4, 8]
    assert list(right.get_ydata()) == pytest.approx([0.29, 0.33])
    assert right.get_color() == lines["right memory, rate 16"].get_color()
    assert right.get_linestyle() != lines["right memory, rate 16"].get_linestyle()
    assert len({line.get_color() for line in lines.values()}) == 4
    assert list(panels["loss of held-out answers"][0].get_ydata()) == [1.5, 1.5]
    recall = [line.get_label() for line in panels["recall among held-out documents"]]
    assert recall[:2] == ["first, rate 4", "first, rate 16"]


def test_rates_of_candidates_have_a_line_each(log, tmp_path, axes):
    records = [
        {"step": step, "eval_loss": 1.0}
        | {f"eval_loss@{rate}": 0.1 * rate for rate in (16, 4)}
        | {f"eval_recall_candidates@{k}@{rate}": 0.5 for k in (1, 5) for rate in (16, 4)}
        for step in (2, 4)
    ]
    plot_runs([log(records)], tmp_path / "curves.png")
    panels = {axis.get_title(): axis.get_lines() for axis in axes}
    loss = {line.get_label(): line for line in panels["held-out loss by rate"]}
    assert list(loss) == ["eval_loss, rate 4", "eval_loss, rate 16"]
    assert list(loss["eval_loss, rate 16"].get_ydata()) == [1.6, 1.6]
    recall = [line.get_label() for line in panels["recall among a question's candidates"]]
    assert recall == [f"{k}, rate {rate}" for k in ("first", "first five") for rate in (4, 16)]


def test_runs_that_go_on_from_one_another_are_one_training(tmp_path, axes):
    runs = [tmp_path / name for name in ("first", "second", "third")]
    for run, last in zip(runs, (30, 20, 10), strict=True):
        run.mkdir()
        records = [{"step": step, "loss": float(last)} for step in range(10, last + 1, 10)]
        records.append({"step": last, "eval_loss": 1.0})
        (run / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))

    def losses(begins=()):
        return [(r["step"], r["loss"]) for r in joined(runs, begins) if "loss" in r]

    assert losses() == [(10, 30), (20, 30), (30, 30), (40, 20), (50, 20), (60, 10)]
    # The second began at step 20 of the first, whose last steps were taken back.
    found = losses([0, 20, 35])
    assert found == [(10, 30), (20, 30), (30, 20), (45, 10)]
    evaluated = [r["step"] for r in joined(runs, [0, 20, 35]) if "eval_loss" in r]
    assert evaluated == [45]
    plot_runs(runs, tmp_path / "curves.png", [100, 120, 140])
    assert list(axes[0].get_lines()[0].get_xdata()) == [110, 120, 130, 140, 150]
    with pytest.raises(ValueError, match="begin must be given for each of the 3 runs, got 2"):
        joined(runs, [0, 20])
    for wrong in ([0, 20, 20], [-1, 20, 30], [30, 20, 40]):
        with pytest.raises(ValueError, match="begin must be steps in ascending order"):
            joined(runs, wrong)


def test_all_groups_have_curves(log, tmp_path, axes):
    groups = {f"{kind}_{group}": 1.0 for kind in ("grad_norm", "learning_rate") for group in GROUPS}
    records = [{"step": step, "loss": 1.0, "learning_rate": 1.0, **groups} for step in (1, 2)]
    plot_runs([log(records)], tmp_path / "curves.png")
    counts = {axis.get_title(): len(axis.get_lines()) for axis in axes}
    assert counts == {"loss": 1, "gradient norm": 6, "learning rate": 7}


def test_what_cannot_be_drawn(log, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"it has no log\.jsonl"):
        plot_runs([tmp_path], tmp_path / "curves.png")
    with pytest.raises(ValueError, match="nothing is logged yet"):
        plot_runs([log([])], tmp_path / "curves.png")
    log()
    monkeypatch.setattr("clara.training.plot.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package matplotlib"):
        plot_runs([tmp_path], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
