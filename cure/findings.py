"""What the report says: prose whose every number is read from a table, and pointers to where each can be found."""

import pandas as pd

from cure import catalogue, config, finetune, finetune_tables, paths, plots, pointing, scores, tables, topk
from cure import families as _families
from cure import structure as _structure
from cure.embed import FEATURES, STATISTICS
from cure.settings.finetune import FinetuneConfig
from cure.settings.report import ReportConfig
from cure.tasks import TITLES

METRIC_NAMES = {"auroc": "AUROC", "auprc": "AUPRC"}
#: Weights that were never trained.
UNTRAINED = ("random", STATISTICS)


def _table(profile: str, stage: str, name: str) -> pd.DataFrame:
    return tables.read(paths.stage(profile, stage), name)


def notebook_name(stage: str) -> str:
    """Name of a stage's notebook without its ending, as reports and pages are called."""
    return f"{config.STAGES[stage]}_{stage}"


def source(profile: str, stage: str, name: str) -> str:
    """Where a table can be read in full and which notebook made it."""
    notebook = notebook_name(stage)
    return f"Table [`{name}.csv`](../../tables/{profile}/{name}.csv), made by [{notebook}]({notebook}.ipynb)."


def show_figure(profile: str, stage: str, name: str) -> None:
    """Show a figure of another stage with its caption, and where it comes from."""
    from IPython.display import Markdown, display

    plots.show(paths.stage(profile, stage) / "figures" / f"{name}.png")
    notebook = notebook_name(stage)
    file = f"[`{name}.svg`](../../figures/{profile}/{name}.svg)"
    display(Markdown(f"Figure {file}, drawn by [{notebook}]({notebook}.ipynb)."))


def _macro(report: ReportConfig, head: str = "logistic", task: str = "macro") -> pd.DataFrame:
    main = scores.main_rows(_table(report.profile, "heads", "heads"), report.metric)
    return main[(main["task"] == task) & (main["head"] == head)].set_index(["encoder", "weights"])


def _number(row: pd.Series) -> str:
    return f"{row['value']:.3f} [{row['lo']:.3f}, {row['hi']:.3f}]"


def _difference(row: pd.Series) -> str:
    return f"{row['value']:+.3f} [{row['lo']:+.3f}, {row['hi']:+.3f}]"


def _supers(by_task: pd.DataFrame) -> str:
    """The difference over the superclasses; a cohort may have none."""
    return _difference(by_task.loc["macro-super"]) if "macro-super" in by_task.index else "none here"


def _verdict(row: pd.Series) -> str:
    """What a paired comparison says after Holm's correction over its table."""
    decided = row["p_holm"] < 0.05
    return ("better" if row["value"] > 0 else "worse") if decided else "not told apart"


def titles(report: ReportConfig) -> dict[str, str]:
    """What each binary task of the cohort means; a cohort of one's own names its tasks itself."""
    cohort = _table(report.profile, "prepare", "cohort")
    names = cohort.loc[cohort["variable"] == "prevalence", "task"].unique()
    return {name: TITLES.get(name, name) for name in names}


def headline(report: ReportConfig) -> str:
    """What was found, for a reader who reads no further."""
    return f"{studied(report)}\n\n**Found.** {main_scores(report)}"


def studied(report: ReportConfig) -> str:
    """Who was studied, and what may be concluded from it."""
    profile = config.load(report.profile)
    cohort = _table(report.profile, "prepare", "cohort")
    size, title = cohort[cohort["part"] == "all"].set_index("variable")["value"], profile.cohort.title
    return (
        f"**{title[0].upper()}{title[1:]}** ({size['records']:,.0f} records of {size['patients']:,.0f} patients). "
        f"{profile.summary}"
    )


def main_scores(report: ReportConfig) -> str:
    """Average scores of the pre-trained encoder, its floors, and networks trained whole."""
    macro, name = _macro(report), METRIC_NAMES[report.metric]
    features = macro.xs(FEATURES).iloc[0]
    encoder = config.parameters("pretrain", report.profile)["encoder"]
    trained = "; ".join(
        f"`{weights}` {_number(row)}" for weights, row in macro.loc[encoder].iterrows() if weights not in UNTRAINED
    )
    others = "; ".join(
        f"{e}{'' if weights == 'random' else ' (statistics)'} {_number(row)}"
        for (e, weights), row in macro.iterrows()
        if weights in UNTRAINED
    )
    tuned = finetune_tables.main_rows(_table(report.profile, "finetune", "finetune"), report.metric)
    tuned = tuned[(tuned["task"] == "macro") & tuned["strategy"].isin(["full", "full+decay", "scratch"])]
    whole = "; ".join(f"{row['label']} {_number(row)}" for _, row in tuned.iterrows())
    return (
        f"Macro {name} over {features['n_tasks']:.0f} binary tasks, all on the same test records. Logistic "
        f"head on frozen embeddings of `{encoder}`, pre-trained without labels: {trained}; on encoders never trained: "
        f"{others}; on hand-crafted ECG features: {_number(features)}. Trained whole: {whole}."
    )


def pretraining(report: ReportConfig) -> str:
    """What pre-training adds to a random network of the same architecture, head by head."""
    table = _table(report.profile, "heads", "pretraining")
    lines = [
        "| encoder | weights | head | against | five superclasses | all tasks | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for (encoder, weights, head, other), rows in table.groupby(
        ["encoder", "weights", "head", "comparator"], sort=False
    ):
        by_task = rows.set_index("task")
        row = by_task.loc["macro"]
        both = f"{_supers(by_task)} | {_difference(row)}"
        lines.append(f"| {encoder} | {weights} | {head} | {other} | {both} | {_verdict(row)} |")
    curves = _table(report.profile, "pretrain", "pretraining_curves")
    last = (
        curves[curves["epoch"] == curves["epoch"].max()].groupby(["weights", "metric"])[["value", "uninformed"]].mean()
    )
    left = (last["value"] / last["uninformed"]).unstack()
    terms = {
        name: ", ".join(f"{term} {value:.2f}" for term, value in row.dropna().items()) for name, row in left.iterrows()
    }
    learned = "; ".join(f"{name}: {said}" for name, said in terms.items())
    return (
        "Difference in AUROC to the same architecture with random weights under the same head, mean pooling, averaged "
        "over its initialisations and paired over patients [95 % interval]; the verdict is on all tasks, at p < 0.05 "
        "after Holm's correction over the whole table. `statistics` are random weights whose normalisations hold the "
        "means and variances of the training records: what is gained over them was learned. "
        f"What is left of the training losses, relative to a network that has learned nothing: {learned}. "
        + source(report.profile, "heads", "pretraining")
        + "\n\n"
        + "\n".join(lines)
    )


def families(report: ReportConfig) -> None:
    """Show how the objectives of pre-training compare, where the profile compares any."""
    from IPython.display import Markdown, display

    profile, name = report.profile, "pretraining_families"
    if not config.parameters("pretrain", profile)["families"]:
        text = "This profile compares no objectives (`families` in its pretrain section); `ptbxl-subset` does."
        display(Markdown(text))
        return
    show_figure(profile, "pretrain", name)
    display(_families.view(_table(profile, "pretrain", name)))
    text = (
        "One encoder, one split, one seed, equal epochs; a linear probe on the frozen encoder, scored on the split's "
        "test records once. `statistics` has learned nothing: only its normalisations' means and variances are those "
        "of the training records. What an objective gains over it, it has taught. "
    )
    display(Markdown(text + source(profile, "pretrain", name)))


def finetuning(report: ReportConfig) -> str:
    """Fine-tuning against its alternatives, in words."""
    table = _table(report.profile, "finetune", "finetune_vs_linear")
    lines = ["| fine-tuned against | all tasks | five superclasses | fine-tuning is |", "|---|---|---|---|"]
    for name, rows in table.groupby("comparator", sort=False):
        by_task = rows.set_index("task")
        row = by_task.loc["macro"]
        lines.append(f"| {name} | {_difference(row)} | {_supers(by_task)} | {_verdict(row)} |")
    return (
        "Macro AUROC of the fine-tuned encoder minus that of each alternative, paired over patients [95 % interval]; "
        "the verdict is on all tasks, at p < 0.05 after Holm's correction. "
        f"{_unfinished(report)}" + source(report.profile, "finetune", "finetune_vs_linear") + "\n\n" + "\n".join(lines)
    )


def _unfinished(report: ReportConfig) -> str:
    """In how many trainings the last epoch was the best: they might have gone on to get better."""
    sizes = _table(report.profile, "finetune", "finetune_sizes").query("strategy != 'linear'")
    wide = sizes.pivot(index=["strategy", "encoder", "split", "seed"], columns="metric", values="value")
    settings = config.check(FinetuneConfig, **config.parameters("finetune", report.profile))
    most = {(one.name, one.encoder): recipe.epochs for one, recipe in finetune.strategies(settings)}
    listed = [key in most for key in wide.index.droplevel(["split", "seed"])]  # not those of an older profile
    wide = wide[listed]
    allowed = [most[key] for key in wide.index.droplevel(["split", "seed"])]
    last = wide["epoch_kept"] == allowed
    counts = last.groupby(["strategy", "encoder"], sort=False).agg(["sum", "size"]).iterrows()
    said = ", ".join(f"{int(n['sum'])} of {int(n['size'])} ({name} {encoder})" for (name, encoder), n in counts)
    return f"Trainings whose last allowed epoch was their best, so that more might have helped: {said}. "


def structure(report: ReportConfig) -> str:
    """How much purer neighbourhoods are than chance, in each representation."""
    table = _structure.main_rows(_table(report.profile, "structure", "structure"))
    lift = table[(table["metric"] == "knn_lift") & table["supported"] & (table["task"] != _structure.SUPERCLASS)]
    mean = lift.groupby("label", sort=False)["value"].agg(["mean", "min", "max"]).sort_values("mean", ascending=False)
    said = "; ".join(
        f"{name} {row['mean']:.1f} ({row['min']:.1f} to {row['max']:.1f})" for name, row in mean.iterrows()
    )
    k = config.parameters("structure", report.profile)["k"]
    return (
        f"Among a positive's {k} nearest records of other patients, how many times more positives are there than blind "
        f"drawing would give? Mean over tasks (lowest to highest task): {said}. "
        + source(report.profile, "structure", "structure")
    )


def explanation(report: ReportConfig) -> str:
    """Which dimensions, and whether attributions point at what was planted."""
    curve = _table(report.profile, "explain", "topk")
    points = _table(report.profile, "explain", "pointing")
    return (
        topk.topk_text(curve)
        + "\n\n"
        + pointing.answer(points)
        + "\n\n"
        + source(report.profile, "explain", "pointing")
    )


def main_result(report: ReportConfig) -> str:
    """The main table in words: each head's macro score on the features, and the span over tasks."""
    table = _table(report.profile, "heads", "heads")
    main = scores.main_rows(table, report.metric)
    macro = main[(main["task"] == "macro") & (main["encoder"] == FEATURES)].set_index("head")
    heads = "; ".join(f"{head} {_number(row)}" for head, row in macro.iterrows())
    single = main[main["supported"] & ~main["task"].isin(list(scores.MACROS)) & (main["encoder"] == FEATURES)]
    single = single[single["head"] == "logistic"].sort_values("value")
    if single.empty:
        return "No task has ten positive and ten negative test records: nothing can be said."
    low, high = single.iloc[0], single.iloc[-1]
    asked = set(titles(report))
    unsupported = sorted(set(main.loc[~main["supported"], "task"]) | (asked - set(main["task"])))
    missing = f" Below ten positive test records, and in no average: {', '.join(unsupported)}." if unsupported else ""
    return (
        f"Macro {METRIC_NAMES[report.metric]} of the hand-crafted features by head: {heads}. Under the logistic head "
        f"their tasks span {low['value']:.3f} ({low['task']}, {low['n_pos']:.0f} positives) to {high['value']:.3f} "
        f"({high['task']}, {high['n_pos']:.0f} positives).{missing}"
    )


def main_table(report: ReportConfig) -> pd.DataFrame:
    """Encoder x head x task, as the paper prints it."""
    main = scores.main_rows(_table(report.profile, "heads", "heads"), report.metric)
    return tables.score_view(main, ["encoder", "weights", "head"], report.metric)


def marks(report: ReportConfig) -> str:
    """What the marks beside scores mean, and what random weights of a published architecture stand for."""
    published = config.parameters("heads", report.profile)
    names = ", ".join(f"`{name}`" for name in published["published"])
    said = [f"{mark.strip()} pre-training saw: {seen}." for seen, mark in tables.SEEN.items()]
    floors = f" {names}: architectures of published models; with weights `random` they are floors, not those models."
    return " ".join(said) + (floors if names else "")


def grades() -> str:
    """What the grades of evidence mean."""
    return "Grades: " + "; ".join(f"{grade}: {meaning}" for grade, meaning in catalogue.GRADES.items()) + "."


def comparison(report: ReportConfig) -> str:
    """How many tasks each frozen encoder wins or loses against the features, after Holm's correction."""
    table = _table(report.profile, "heads", "heads_vs_features")
    single = table[table["supported"] & ~table["task"].isin(list(scores.MACROS))]
    lines = ["| encoder | weights | head | macro difference, 95 % interval | tasks better | tasks worse | undecided |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for (encoder, weights, head), rows in single.groupby(["encoder", "weights", "head"], sort=False):
        decided = rows["p_holm"] < 0.05
        better, worse = int((decided & (rows["value"] > 0)).sum()), int((decided & (rows["value"] < 0)).sum())
        chosen = (table["encoder"] == encoder) & (table["weights"] == weights) & (table["head"] == head)
        macro = table[chosen & (table["task"] == "macro")].iloc[0]
        numbers = f"{better} | {worse} | {len(rows) - better - worse}"
        lines.append(f"| {encoder} | {weights} | {head} | {_difference(macro)} | {numbers} |")
    return (
        "Difference in AUROC to the hand-crafted features under the same head, paired over patients; a task counts "
        "as better or worse at p < 0.05 after Holm's correction over the whole table. "
        + source(report.profile, "heads", "heads_vs_features")
        + "\n\n"
        + "\n".join(lines)
    )


def groups(report: ReportConfig) -> pd.DataFrame:
    """Macro score of every label group, as the paper prints it."""
    return scores.group_view(_table(report.profile, "heads", "groups"), report.metric)


def null(report: ReportConfig) -> str:
    """Mean and spread of the permutation null, and whether it says that labels leak."""
    table = _table(report.profile, "heads", "null")
    what, widest = table.iloc[0], table.loc[table["hi"].idxmax()]
    far = table[(table["mean_within"] - 0.5).abs() > 4 * table["se_within"]]
    verdict = "no task is further from 0.50 than four standard errors"
    if len(far):
        verdict = f"**{', '.join(far['task'])} is further from 0.50 than four standard errors: look for a leak**"
    pooling = ""
    if _rotates(report):
        pooling = (
            f" Pooled over test parts, as all scores here are, it lies between {table['mean'].min():.3f} and "
            f"{table['mean'].max():.3f}: what pooling alone costs."
        )
    return (
        f"A ridge probe on {what['encoder']} (seed {what['seed']}) was retrained on permuted labels, "
        f"{what['n_permutations']} times per task. Within test parts its mean AUROC lies between "
        f"{table['mean_within'].min():.3f} and {table['mean_within'].max():.3f}; {verdict}.{pooling} Chance alone "
        f"reaches {widest['hi']:.3f} on {widest['task']} ({widest['n_pos']:.0f} positives) in its best 2.5 %. "
        + source(report.profile, "heads", "null")
    )


def limits(report: ReportConfig) -> str:
    """What these results do not show, and what was not run."""
    heads = _table(report.profile, "heads", "heads")
    rarest = heads[heads["n_pos"].notna()].sort_values("n_pos").iloc[0]
    lines = [
        config.load(report.profile).summary,
        f"The rarest task, {rarest['task']}, has {rarest['n_pos']:.0f} positive test records: its interval is wide, "
        "and small differences between methods cannot be seen on it.",
        "Intervals cover the sampling of patients, given the fitted heads and the initialisations; not refitting on "
        "other patients.",
        "Labels are taken as annotated, at any likelihood.",
        f"Pre-training ran with {_count(report, 'pretrain')} and fine-tuning with {_count(report, 'finetune')}: what "
        "other seeds would change is not covered by the intervals.",
        "How pre-training weighs its two losses (one of five settings), and which learning rates and numbers of epochs "
        "fine-tuning chooses among, were set by labelled scores on validation parts of PTB-XL's oldest records. Where "
        "folds rotate, such records are test records of other splits.",
        "The average waves of the simulator were fitted to class averages of PTB-XL: weights pre-trained on "
        "simulated ECGs have seen no recording, but are not independent of its oldest records.",
        "That the mean gradient is the attribution scored against the planted truth was decided after integrated "
        "gradients, tried first on the simulated cohort, pointed no better than their untrained twin.",
    ]
    if missing := _not_run(report):
        lines.append(f"**Not run:** {missing}.")
    if config.load(report.profile).cohort.source == "ptbxl":
        lines.insert(
            3,
            "The hand-crafted features were developed with scores on folds 1-8 of records up to ecg_id 1999 in view: "
            "where these are tested, the features' scores may be optimistic.",
        )
    if _rotates(report):
        drop = 0.5 - _table(report.profile, "heads", "null")["mean"].min()
        lines.insert(
            3,
            "Test scores of five heads are pooled, and these are calibrated differently: under permuted labels that "
            f"alone lowers the AUROC by up to {drop:.3f}.",
        )
    return "\n".join(f"* {line}" for line in lines)


def _not_run(report: ReportConfig) -> str:
    """What a profile leaves out of the study that the records and weights of others would allow; empty if nothing."""
    name, found = report.profile, []
    if config.parameters("embed", name)["weights"] != "hub":
        found.append(
            "published weights: here their architectures have random ones; `weights: hub` in sections embed and heads "
            f"of profiles/{name}.yaml adds the real rows (`cure weights list` says where they come from)"
        )
    part = config.parameters("download", name).get("max_id_100") is not None
    if part or config.load(name).cohort.source != "ptbxl":
        found.append("the whole of PTB-XL, by `make repro PROFILE=ptbxl` (about 3 GB are downloaded)")
    return "; ".join(found)


def _count(report: ReportConfig, stage: str) -> str:
    n = len(config.parameters(stage, report.profile)["seeds"])
    return f"{n} seed{'s' if n > 1 else ''}"


def _rotates(report: ReportConfig) -> bool:
    return config.load(report.profile).cohort.split == "rotate"
