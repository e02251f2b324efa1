import pytest
import yaml
from conftest import TINY

from cure import config
from cure.config import check
from cure.errors import CureError
from cure.settings.embed import EmbedConfig


@pytest.mark.parametrize("profile", config.profiles())
def test_every_profile_is_valid_for_every_stage(profile):
    for stage in config.STAGES:
        assert config.parameters(stage, profile)["profile"] == profile


def test_an_unknown_profile_names_the_known_ones():
    with pytest.raises(CureError, match=r"unknown profile 'demmo'.*demo"):
        config.load("demmo")


def test_a_mistyped_setting_names_itself_and_its_profile():
    with pytest.raises(
        CureError, match="profile 'demo', section embed: unknown setting 'batchsize'; known settings: profile"
    ):
        check(EmbedConfig, profile="demo", encoders=["resnet1d"], seeds=[0], poolings=["mean"], batchsize=4)


@pytest.mark.parametrize(
    ("setting", "value", "complaint"),
    [
        ("poolings", ["median"], "'mean', 'max', 'min', 'last' or 'own'"),
        ("seeds", [], "at least 1"),
        ("batch_size", 0, "greater"),
    ],
)
def test_a_wrong_value_says_what_is_allowed(setting, value, complaint):
    settings = {"encoders": ["resnet1d"], "seeds": [0], "poolings": ["mean"], setting: value}
    with pytest.raises(CureError, match=f"{setting}.*{complaint}"):
        check(EmbedConfig, profile="demo", **settings)


def test_a_mistyped_section_or_broken_yaml_names_the_file(project):
    file = project / "profiles" / "broken.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load((project / "profiles/tiny.yaml").read_text()), "embbed": {}}))
    with pytest.raises(CureError, match=r"profiles/broken.yaml is not a valid profile: unknown setting 'embbed'"):
        config.load("broken")
    file.write_text("cohort: [")
    with pytest.raises(CureError, match=r"profiles/broken.yaml is not a valid profile"):
        config.load("broken")


SECOND = {"name": "second", "title": "a second cohort", "source": "synthetic-code15", "split": "official"}


def with_external(project, **change):
    """Profile `two`: profile `tiny` with a second cohort."""
    tiny = yaml.safe_load((project / "profiles/tiny.yaml").read_text())
    section = {**SECOND, "download": {"n_records": 90, "seed": 5}, "prepare": {"chunk_size": 7}, **change}
    (project / "profiles" / "two.yaml").write_text(yaml.safe_dump({**tiny, "external": section}))
    return "two"


def test_a_second_cohort_has_its_own_folders_and_settings(project):
    two = with_external(project)
    data = project / "data"
    download = check(config.settings("download"), profile=two, n_records=320, seed=3)
    assert (download.external.n_records, download.external.seed) == (90, 5)
    assert download.external.cohort.title == "a second cohort"
    assert download.external.raw_folder == data / "raw" / "synthetic-code15-two"
    assert download.raw_folder == data / "raw" / "synthetic-two"
    assert download.external.manifest == data / "manifests" / "two" / "manifest-second.csv"
    assert download.manifest == data / "manifests" / "two" / "manifest.csv"
    assert check(config.settings("prepare"), profile=two).external.chunk_size == 7
    embed = check(EmbedConfig, profile=two, encoders=["resnet1d"], seeds=[4], poolings=["max"])
    assert embed.external.model_dump() == embed.model_dump(), "the same weights and poolings for both cohorts"
    assert embed.external.embeddings_folder == data / "interactive/embeddings/two/second"
    assert embed.external.cohort_folder == data / "cohorts/two/second"
    assert embed.external.weights_folder == embed.weights_folder
    assert embed.cohort.name == "tiny"
    assert "is_external" not in str(embed.external.model_dump()), "papermill must not get it as a parameter"
    (project / "profiles" / "one.yaml").write_text(yaml.safe_dump({**TINY, "external": None}))
    assert check(config.settings("download"), profile="one", n_records=50).external is None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"download": {"n_record": 90}}, "section external.download: unknown setting 'n_record'"),
        ({"name": "tiny"}, r"profiles/two.yaml is not a valid profile: external.name is cohort.name"),
        ({"source": "synthetic"}, r"profiles/two.yaml is not a valid profile: external.source is cohort.source"),
        ({"sauce": 1}, r"unknown setting 'external.sauce'"),
    ],
)
def test_a_mistake_in_the_second_cohort_is_found_with_the_profiles_other_mistakes(project, change, complaint):
    two = with_external(project, **change)
    with pytest.raises(CureError, match=complaint):
        config.parameters("download", two)
