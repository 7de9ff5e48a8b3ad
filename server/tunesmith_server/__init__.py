"""The control plane: jobs, files, models, keys and the schedule.

It must not know torch or vLLM.
"""
