"""Encoders and kept heads on a user's own ECGs: any usual format, rate, unit and choice of leads.

`find` lists records, `readers` (`arrays` for CSV and NumPy) read what a file says, `record` makes twelve leads in mV of
it, `quality` looks at them, `encode` conditions and encodes batches, `stream` runs all of it in parts that survive an
interruption, `embed` and `predict` are the two commands, `commands` their options.
"""
