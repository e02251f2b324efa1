"""Contents of a report: what each table holds, and where every table and figure can be found."""

from pathlib import Path

from cure import config, paths, plots
from cure.findings import notebook_name


def index(profile: str) -> str:
    """Every table and figure with its file and its notebook."""
    rows = ["| what | file | made by |", "|---|---|---|"]
    for stage in config.STAGES:
        folder, notebook = paths.stage(profile, stage), notebook_name(stage)
        for kind, pattern in (("tables", "*.csv"), ("figures", "*.png")):
            for file in sorted((folder / kind).glob(pattern)):
                link = f"[`{file.name}`](../../{kind}/{profile}/{file.name})"
                rows.append(f"| {_caption(file)} | {link} | [{notebook}]({notebook}.ipynb) |")
    return "\n".join(rows)


def _caption(file: Path) -> str:
    if file.suffix == ".csv":
        return TABLES.get(file.stem, file.stem)
    return f"Figure: {plots.caption(file)['caption']}"


#: What each table holds, one line each.
TABLES = {
    "cohort": "Who is in the cohort, per part: counts, age, sex, prevalence and support",
    "label_groups": "The six label groups: labels, support, records",
    "lead_cost": "Arithmetic of one forward pass against the number of leads",
    "pretraining_curves": "Losses of self-supervised pre-training by epoch",
    "pretraining_families": "Objectives of pre-training compared: validation and test scores of a linear probe",
    "pretraining_families_curves": "Losses of the compared objectives by epoch",
    "weights": "Pre-trained weights: hash and what they have seen",
    "recognition": "How often two halves of a validation record find each other, trained and untrained",
    "representations": "Encoders and features that were extracted",
    "features": "The main hand-crafted features of every record, and the labels they are about",
    "features_measured": "Share of records in which a feature could be measured",
    "spread": "Participation ratio of each representation",
    "heads": "All scores of all heads with intervals and support",
    "heads_vs_features": "Paired AUROC differences to the hand-crafted features, Holm-adjusted",
    "pretraining": "Paired AUROC differences of pre-trained weights to untrained ones, Holm-adjusted",
    "groups": "Scores of the label groups",
    "null": "AUROC under permuted labels",
    "kept_heads": "Heads kept for other records: split, validation AUROC, support, whether calibrated",
    "finetune": "All scores of all strategies: linear probe, fine-tuning, training from scratch",
    "finetune_vs_linear": "Paired AUROC differences of fine-tuning to its alternatives, Holm-adjusted",
    "finetune_rates": "Validation loss at each learning rate, and which was chosen",
    "finetune_sizes": "Parameters, epochs and records seen by each strategy",
    "finetune_history": "Training and validation loss by epoch",
    "label_efficiency": "Scores over the share of labels: heads on frozen embeddings and trained networks",
    "label_efficiency_sizes": "Training records, patients and positives in each sample",
    "label_efficiency_differences": "Paired AUROC differences to fine-tuning, with as many labels and with all",
    "post_training": "Scores of post-training strategies, by label group and share of labels",
    "post_training_gains": "Absolute and relative gains over plain fine-tuning, paired, Holm-adjusted",
    "post_training_ablation": "Head first or not, at each rate of stochastic depth, against plain fine-tuning",
    "post_training_light": "Strategies that train few parameters, against plain fine-tuning",
    "post_training_refit": "What a new head on the tuned network gains over its own",
    "post_training_rates": "Validation value at each learning rate, and which was chosen",
    "post_training_history": "Training and validation loss by epoch",
    "protocols": "The same heads scored soundly, as the released code does, and step by step between; shuffled labels",
    "grid": "Scores of every representation, pooling, head and task, averaged over initialisations",
    "choices": "Range of scores over the levels of one choice, the others held",
    "ranks": "Ranks of representations over tasks, and how often each is best, by bootstrap",
    "reliability": "Observed against predicted risk in ten bins",
    "calibration": "Brier score, calibration error, slope and intercept",
    "subgroups": "Scores by age and sex",
    "subgroup_gaps": "Differences between groups of age and sex, Holm-adjusted",
    "balanced": "Training on balanced records against training on all, paired differences",
    "leads": "Scores by lead configuration: every pre-training, both poolings, frozen and fine-tuned",
    "leads_differences": "Paired differences between methods by lead configuration, Holm-adjusted",
    "leads_published": "What each representation loses where leads are missing, filled by one rule",
    "leads_reconstruction": "How far stored limb leads are from what leads I and II give, in microvolts",
    "leads_counted": "Arithmetic and memory of one forward pass by lead configuration, counted",
    "leads_curves": "Losses of the pre-trainings of the leads study by epoch",
    "leads_weights": "Weights of the leads study: hash and what they have seen",
    "cohorts": "The study's cohort beside the second one",
    "transfer": "Scores of heads at home and on the other cohort",
    "transfer_drop": "Scores on the other cohort minus scores at home",
    "transfer_amplitude": "Amplitudes of both cohorts, in the units they are stored in",
    "clusters": "Calinski-Harabasz index and agreement of clusters with labels",
    "clusters_null": "The same under permuted labels",
    "dimensions": "Intrinsic dimension of each representation",
    "probes": "Ridge probes for age, sex, heart rate and intervals",
    "probes_null": "The same under permuted targets",
    "probes_vs": "Paired differences between ridge probes, Holm-adjusted",
    "layers": "What each layer of the encoder holds, trained and untrained",
    "layers_cka": "Debiased linear CKA between layers",
    "selection": "Silhouettes of pictures chosen by labels, true and shuffled",
    "selection_grid": "Silhouette at every UMAP setting",
    "selection_maps": "Coordinates of the pictures that were chosen",
    "faithfulness": "Areas of deletion and insertion curves, and differences to controls, Holm-adjusted",
    "faithfulness_curves": "Log-odds against the share removed or put back",
    "agreement": "Rank correlation and overlap between attributions",
    "beat_attribution": "Attribution over the average beat, per class, lead and 40 ms",
    "quickstart_predictions": "One record: calibrated probability of every task, beside threshold and prevalence",
    "quickstart_checks": "One record: how exactly its attribution adds up, and what it shares with random weights",
    "quickstart_neighbours": "One record: the nearest records of other patients, with their labels",
    "structure": "Silhouette, neighbour purity and Davies-Bouldin index of every task in every representation",
    "structure_null": "The same under permuted labels",
    "cka": "Debiased linear CKA between representations",
    "maps": "UMAP and t-SNE coordinates of the records drawn",
    "shap": "Mean |SHAP| of every embedding dimension, per head, task and split",
    "concentration": "In how many dimensions the importance of a head is concentrated",
    "topk": "AUROC of heads refitted on the k most important dimensions, and on random ones",
    "attribution": "What was attributed to leads and time, and how exactly",
    "attribution_leads": "Lead occlusion and share of attribution per lead",
    "attribution_segments": "Occlusion of beat segments and share of attribution per segment",
    "randomisation": "Similarity of attributions after randomising weights",
    "catalogue": "Open ECG foundation models: architecture, pre-training, adaptation, input, licence, home",
    "contamination": "What each model's pre-training saw of each evaluation cohort, with the grade of the evidence",
    "pointing": "Attributions scored against what was planted (simulated records only)",
}
