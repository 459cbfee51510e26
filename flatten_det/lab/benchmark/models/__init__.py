"""Backbones, detectors and segmentors side by side, over sizes of the image.

``settings`` says on what they run, ``sources`` finds and builds them by name, ``work`` makes the calls,
``run`` measures, ``result`` keeps what one cell says, ``previous`` goes on from an earlier run;
``comparison`` and ``curves`` derive speed-ups, exponents and crossovers, ``table``, ``plot`` and
``report`` show them.
"""
