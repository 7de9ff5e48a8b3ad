"""Owns experiment trackers (Weights & Biases, MLflow): what a job's steps measured is told to those that it names.

It must not know how jobs run; it reads what they have reported.
"""
