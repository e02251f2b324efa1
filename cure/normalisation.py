"""Statistics of batch normalisations: what pre-training brings even where it teaches nothing.

A network that has been trained on ECGs carries their means and variances in its normalisations. A random one carries
0 and 1. Giving a random network the statistics of the training records tells the two apart: what is gained over *that*
control was learned.
"""

import numpy as np
import torch
from torch import nn

from cure.errors import CureError


@torch.no_grad()
def take_statistics(model: nn.Module, x: np.ndarray, rows: np.ndarray, batch_size: int = 128) -> None:
    """Replace the running means and variances of batch normalisations by those of some records, in place.

    Parameters
    ----------
    model : nn.Module
        Left in evaluation mode; no parameter changes.
    x : (n_records, n_leads, n_samples) float32 array
        Model-ready input; may be memory-mapped.
    rows : int array
        The records whose statistics are taken: training records.
    batch_size : int
        The result is the plain average over batches of nearly equal size.

    Raises
    ------
    CureError
        If the model has no batch normalisation.
    """
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        raise CureError(f"{type(model).__name__} has no batch normalisation: take it out of `statistics`")
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average over batches
    model.train()
    for batch in np.array_split(rows, -(-len(rows) // batch_size)):
        model(torch.from_numpy(np.asarray(x[batch])))
    model.eval()
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
