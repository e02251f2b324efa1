"""Settings, one module per stage: a change to one stage's leaves the others' results valid."""
