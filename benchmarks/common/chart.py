"""Charts of tables that compare methods with one of them."""

from pathlib import Path

from matplotlib.figure import Figure

RATIO = "times LoRA's"


def chart(records: list[dict[str, str]], file: Path) -> None:
    """Bars of the ratios to LoRA, one group for each thing that was timed; nothing for other tables."""
    shown = [record for record in records if record.get(RATIO) and record.get("method")]
    if not shown:
        return
    figure = Figure(figsize=(8, 0.6 + 0.32 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    names = [f"{record['what']}: {record['method']}" for record in shown][::-1]
    ratios = [float(record[RATIO]) for record in shown][::-1]
    drawn = axes.barh(names, ratios, color=["#777" if ratio == 1 else "#2a6f97" for ratio in ratios])
    axes.bar_label(drawn, [f"{ratio:.2f}" for ratio in ratios], padding=3, fontsize=8)
    axes.axvline(1, color="#777", linewidth=0.8)
    if max(ratios) > 5:
        axes.set_xscale("log")
    axes.set_xlabel("time or memory over PEFT LoRA's")
    axes.tick_params(axis="y", labelsize=8)
    figure.savefig(file, dpi=130)
