"""Prediction and evaluation with trained models, for images of any size."""
