import pytest
import yaml

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
