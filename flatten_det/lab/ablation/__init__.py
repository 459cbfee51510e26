"""Ablations: the same training for several variants and seeds, and what the differences between them are.

``grid`` names the runs, whose attention ``variants`` exchanges, ``run`` trains one of them and goes on where
it was stopped, ``jobs`` trains all, one after the other or each in a ``worker``, ``statistics`` compares the
variants, ``report`` writes table, JSON and ``figure``.
"""
