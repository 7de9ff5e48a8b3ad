"""Fine-tune jobs as users see them, and their life cycle.

It must not know executors or storage keys of a run.
"""
