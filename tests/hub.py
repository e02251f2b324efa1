"""A small published encoder, its files, and a local server that answers as a hub does. Import what a test needs."""

import hashlib
import io
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from test_download import Server
from torch import nn
from torch.nn.utils import parametrizations

from cure import download
from cure.models import registry, weights
from cure.models.base import PLAIN, Encoder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Small(Encoder):
    """Stands in for a published encoder: a weight-normed convolution, and a prefix in its published names."""

    input_spec = PLAIN
    dim = 4

    def __init__(self):
        super().__init__()
        self.conv = parametrizations.weight_norm(nn.Conv1d(12, 4, 8, stride=8), dim=2)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.conv(x)).transpose(1, 2)

    def accept(self, state):
        return {name.removeprefix("backbone."): value for name, value in state.items()}


class Settings:
    """An object that some checkpoints hold beside their weights."""

    def __init__(self, **values):
        self.__dict__.update(values)


def state(seed=7):
    torch.manual_seed(seed)
    return Small().state_dict()


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def to_bytes(tensors):
    return safetensors.torch.save(tensors)


def zipped(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def sha(data):
    return hashlib.sha256(data).hexdigest()


CHECKPOINT = saved({"optimizer": torch.ones(5000), "state_dict": state(), "val_auroc": np.float64(0.9)})


class Hub(Server):
    """As Hugging Face answers: the commit in a header, the content behind a redirect. Other paths are plain files."""

    def __init__(self, files):
        super().__init__({**files, "cdn": b""})
        self.asked, self.names_hash = [], True
        self.http.RequestHandlerClass.do_HEAD = lambda handler: self.redirect(handler, handler.path.lstrip("/"))

    def answer(self, handler, name):
        self.asked.append(name)
        if "/resolve/" in name:
            return self.redirect(handler, name)
        return super().answer(handler, name)

    def redirect(self, handler, name):
        self.asked.append(f"{handler.command} {name}")
        remote = name.rsplit("/", 1)[-1]
        if name.startswith("old/"):
            return self.head(handler, 307, 0, {"Location": f"/{name.removeprefix('old/')}"})
        if remote not in self.files:
            return self.head(handler, 404, 0, {})
        headers = {"Location": f"/{remote}", "X-Repo-Commit": COMMIT}
        headers |= {"X-Linked-Etag": f'"{sha(self.files[remote])}"'} if self.names_hash else {}
        return self.head(handler, 302, 0, headers)


@pytest.fixture(name="project")
def project_fixture(tmp_path, monkeypatch):
    """An empty project as working directory, in which a few published names build `Small`."""
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "profiles").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("ecgfounder", "hubert-ecg-small", "ecg-fm", "ecg-cpc", "ked", "st-mem"):
        monkeypatch.setitem(registry.PUBLISHED, name, Small)
    return tmp_path


@pytest.fixture(name="hub")
def hub_fixture(project, monkeypatch):
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.01)
    with Hub({"12_lead_ECGFounder.pth": CHECKPOINT}) as running:
        at = running.url.rstrip("/")
        for kind in weights.ADDRESSES:
            monkeypatch.setitem(weights.ADDRESSES, kind, at)
        yield running


def put(name, content):
    file = weights.place(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file
