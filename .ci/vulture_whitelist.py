"""Names that vulture takes for unused although something outside the code uses them.

One bare name a line, with the reason. Read by vulture only (`paths` in pyproject.toml).
"""
