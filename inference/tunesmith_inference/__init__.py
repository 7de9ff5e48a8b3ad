"""The gateway: OpenAI-compatible inference in front of vLLM engines.

It must not know SQL or torch.
"""
