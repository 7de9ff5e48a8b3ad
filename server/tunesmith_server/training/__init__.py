"""What a run tells the control plane: heartbeats, checkpoints, results, failures.

It must not know how runs are started.
"""
