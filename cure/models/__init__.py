"""Encoders: `load(name, weights=..., seed=...)` returns a torch module with one interface whatever its architecture."""

from cure.models.base import Encoder, InputSpec
from cure.models.registry import check, load, names

__all__ = ["Encoder", "InputSpec", "check", "load", "names"]
