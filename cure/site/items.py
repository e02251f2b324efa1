"""Reporting checklists: every item of TRIPOD+AI and MI-CLAIM with where this study answers it."""

from functools import cache
from importlib import resources
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, model_validator


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Item(_Strict):
    """One item: what it asks, in short words, and the answer with the pages that give it."""

    item: str
    section: str
    asks: str
    status: Literal["answered", "partly", "not answered", "not applicable"]
    answer: str
    where: tuple[str, ...]

    @model_validator(mode="after")
    def _has_a_place(self) -> "Item":
        if self.status in ("answered", "partly") and not self.where:
            raise ValueError(f"item {self.item} is {self.status}, so it needs a page that says so")
        return self


class Checklist(_Strict):
    """A checklist with its source."""

    name: str
    source: str
    items: tuple[Item, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many items have each status, those with none left out."""
        every = [item.status for item in self.items]
        order = ("answered", "partly", "not answered", "not applicable")
        return {status: every.count(status) for status in order if status in every}


@cache
def checklists() -> tuple[Checklist, ...]:
    """Both checklists."""
    folder = resources.files("cure").joinpath("templates")
    return tuple(
        Checklist.model_validate(yaml.safe_load(folder.joinpath(f"{name}.yaml").read_text(encoding="utf-8")))
        for name in ("tripod_ai", "mi_claim")
    )
